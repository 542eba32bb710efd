"""Transformer families: parameters -> theta -> sampling grid (the grid generator).

Convention, everywhere:
    theta maps OUTPUT coordinates to INPUT coordinates, both in [-1, 1], (x, y) order, with
    align_corners=False: -1 and 1 are the outer edges of the corner pixels. So
    - a scale above 1 zooms out,
    - a shift of (0.5, 0) moves the picture's content half a half-width to the LEFT,
    - a positive angle turns the content counter-clockwise as seen on the screen (y points down).
    On pictures that are not square a rotation shears, as both axes are of length 2.

The parameters of each family, in order; angles in radians, shifts t in half-widths, s the scale:
    translation  t_x, t_y
    rotation     angle
    attention    log s, t_x, t_y: a window of the picture's shape, as the paper's equation 3 has it
    similarity   angle, log s, t_x, t_y
    affine       the matrix's entries a to f, row by row
    projective   a to f, then two tilts, which tanh bounds
    tps          displacements x, y of each of 4 x 4 control points, row by row (half-widths)

Source: Jaderberg et al. 2015, "Spatial Transformer Networks", arXiv 1506.02025, equations 1 and 3,
section 3.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from numbers import Integral

import torch
import torch.nn.functional as F

TPS_POINTS = 4  # control points along each side: 4 x 4 by default
# bound on the two perspective terms g, h: keeps the horizon outside the picture, where the
# denominator g x + h y + 1 is at least 0.1
MAX_TILT = 0.45
SIMILARITY = ("angle", "log_scale", "shift_x", "shift_y")
KEPT = 32  # constants of each kind: images of many sizes would fill the memory


@dataclass(frozen=True)
class Family:
    """A row of the table: parameters (B, num_params) to theta, and theta to a grid (B, H, W, 2)."""

    name: str
    num_params: int
    identity_params: tuple[float, ...]
    to_theta: Callable
    to_grid: Callable
    is_matrix: bool = True  # theta is a matrix: it composes and inverts

    def identity(self):
        """Parameters (num_params,) of the exact identity."""
        return torch.tensor(self.identity_params, dtype=torch.float32)

    def theta(self, params):
        """theta of `params` (B, num_params).

        (B, 2, 3); projective (B, 3, 3); tps (B, control points, 2).
        """
        if params.ndim != 2 or params.shape[1] != self.num_params:
            raise ValueError(f"params: shape {tuple(params.shape)}; {self.name} needs "
                             f"(B, {self.num_params})")
        return self.to_theta(params)

    def grid(self, params, size):
        """Sampling grid (B, H, W, 2), input coordinates, for an output of `size`: int or (H, W)."""
        return self.grid_of(self.theta(params), size)

    def grid_of(self, theta, size):
        """Sampling grid (B, H, W, 2) of `theta`, in its precision even under autocast."""
        height, width = (size, size) if isinstance(size, Integral) else size
        # bf16 coordinates would be off by up to 1/16 pixel
        with torch.autocast(theta.device.type, enabled=False):
            return self.to_grid(theta, height, width)


# ---- parameters -> theta -------------------------------------------------------------------------


def _similarity(params, given=SIMILARITY):
    """[[s cos, -s sin, t_x], [s sin, s cos, t_y]]; what is not `given` is as upright.

    given: what the params are, in the order of SIMILARITY.
    """
    known = dict(zip(given, params.unbind(1), strict=True))
    zero = torch.zeros_like(params[:, 0])
    angle, log_scale, tx, ty = (known.get(name, zero) for name in SIMILARITY)
    cos, sin = log_scale.exp() * angle.cos(), log_scale.exp() * angle.sin()
    return torch.stack((cos, -sin, tx, sin, cos, ty), dim=1).reshape(-1, 2, 3)


def _affine(params):
    """[[a, b, c], [d, e, f]], the paper's equation 1."""
    return params.reshape(-1, 2, 3)


def _projective(params):
    """[[a, b, c], [d, e, f], [g, h, 1]], whatever the parameters with the horizon outside."""
    tilt = MAX_TILT * params[:, 6:].tanh()
    return torch.cat([params[:, :6], tilt, torch.ones_like(tilt[:, :1])], dim=1).reshape(-1, 3, 3)


def _tps(params):
    """Where each of the K control points is sampled, (B, K, 2)."""
    displacement = params.reshape(params.shape[0], -1, 2)
    return control_points(TPS_POINTS, params.dtype, params.device) + displacement


# ---- theta -> grid -------------------------------------------------------------------------------


# Planar inside, all x then all y: one matrix product for the whole batch, and cheap gradients.
# As (B, H, W, 2) it is then a permuted view, which grid_sample takes as it is.


def _as_grid(planes, height, width):
    """(B, 2, H*W) or (B*2, H*W), x and y in turn, as a grid (B, H, W, 2)."""
    return planes.reshape(-1, 2, height, width).permute(0, 2, 3, 1)


def _affine_grid(theta, height, width):
    if theta.shape[1:] != (2, 3):
        raise ValueError(f"theta: shape {tuple(theta.shape)}; must be (B, 2, 3), as "
                         "FAMILIES[name].theta makes it of params")
    points = _output_points(height, width, theta.dtype, theta.device)  # (H*W, 3)
    return _as_grid(theta.reshape(-1, 3) @ points.T, height, width)


def _projective_grid(theta, height, width):
    points = _output_points(height, width, theta.dtype, theta.device)
    x, y, w = (row @ points.T for row in theta.unbind(1))  # (B, H*W) each
    # composed maps may bring the horizon in: points beyond it are pushed far outside instead of
    # turning inside out
    w = w.clamp_min(1e-3)
    return _as_grid(torch.stack([x / w, y / w], dim=1), height, width)


def _tps_grid(theta, height, width):
    side, kind = math.isqrt(theta.shape[1]), (theta.dtype, theta.device)
    identity = _output_points(height, width, *kind)[:, :2].T  # (2, H*W)
    # displacements apart from where they start, so that none at all is the exact identity
    displacement = (theta - control_points(side, *kind)).transpose(1, 2)
    displacement = displacement.reshape(-1, side * side)  # (B*2, K)
    displaced = displacement @ _tps_weights(side, height, width, *kind).T
    return _as_grid(identity + displaced.reshape(-1, 2, height * width), height, width)


def constant(make):
    """Make a tensor once for each set of arguments, and keep it; of many, the newest.

    Kept are plain tensors only: a FakeTensor, as torch.export makes them, is of no use afterwards.
    On CUDA all are kept: a captured graph reads them by their addresses.
    """
    kept = {}

    @wraps(make)
    def made(*args):
        if args not in kept:
            with torch.inference_mode(False):  # or it could never take part in training
                tensor = make(*args)
            if type(tensor) is not torch.Tensor:
                return tensor
            kept[args] = tensor
            if len(kept) > KEPT and tensor.device.type == "cpu":
                del kept[next(iter(kept))]
            return tensor
        return kept[args]

    made.cache_clear = kept.clear  # as functools.cache has it
    return made


@constant
def _output_points(height, width, dtype, device):
    """Homogeneous centres (x, y, 1) of the output pixels, (H*W, 3)."""
    # made by additions alone: autocast, which may be on at the first call, coarsens matrix products
    y = (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1
    x = (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3).to(device, dtype)


@constant
def control_points(side, dtype=torch.float64, device="cpu"):
    """The control points (x, y) of a thin plate spline on [-1, 1]^2, (side^2, 2), row by row."""
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).to(device, dtype)


def _tps_kernel(a, b):
    """U(r) = r^2 log r^2 between the points a (M, 2) and b (K, 2): (M, K)."""
    r2 = (a[:, None] - b[None]).square().sum(-1)
    return torch.xlogy(r2, r2)


@constant
def _tps_weights(side, height, width, dtype, device):
    """Matrix (H*W, K) from control values to values at the output pixels (Bookstein 1989).

    Solved once, in float64. A spline is linear in the values at its control points, so the whole
    grid generator is one matrix product.
    """
    points = control_points(side)
    count = len(points)
    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count, :count] = _tps_kernel(points, points)
    system[:count, count:] = F.pad(points, (1, 0), value=1)
    system[count:, :count] = system[:count, count:].T
    pixels = _output_points(height, width, torch.float64, torch.device("cpu"))[:, :2]
    basis = torch.cat([_tps_kernel(pixels, points), F.pad(pixels, (1, 0), value=1)], dim=1)
    return torch.linalg.solve(system, basis, left=False)[:, :count].to(device, dtype)


FAMILIES = {
    family.name: family
    for family in (
        Family("translation", 2, (0, 0), partial(_similarity, given=SIMILARITY[2:]), _affine_grid),
        Family("rotation", 1, (0,), partial(_similarity, given=SIMILARITY[:1]), _affine_grid),
        Family("attention", 3, (0, 0, 0), partial(_similarity, given=SIMILARITY[1:]), _affine_grid),
        Family("similarity", 4, (0, 0, 0, 0), _similarity, _affine_grid),
        Family("affine", 6, (1, 0, 0, 0, 1, 0), _affine, _affine_grid),
        Family("projective", 8, (1, 0, 0, 0, 1, 0, 0, 0), _projective, _projective_grid),
        Family("tps", 2 * TPS_POINTS**2, (0,) * (2 * TPS_POINTS**2), _tps, _tps_grid,
               is_matrix=False),
    )
}


# ---- measures of grids ---------------------------------------------------------------------------


def identity_grid(grid):
    """The identity's grid (1, H, W, 2), of the size, dtype and device of `grid` (B, H, W, 2)."""
    _, height, width, _ = grid.shape
    points = _output_points(height, width, grid.dtype, grid.device)[:, :2]
    return points.reshape(1, height, width, 2)


def mean_square_radius(grid):
    """Mean squared distance of a grid's points (B, H, W, 2) from their centre: (B,)."""
    return (grid - grid.mean(dim=(1, 2), keepdim=True)).square().sum(-1).mean(dim=(1, 2))
