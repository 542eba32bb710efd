"""Maps as matrices: theta of the matrix families composed, inverted, applied, taken apart.

theta is (B, 2, 3), projective (B, 3, 3), in the coordinates of transforms.py.
"""

from typing import NamedTuple

import torch


def homogeneous(theta):
    """theta (B, 2, 3) or (B, 3, 3) as (B, 3, 3)."""
    if theta.shape[-2:] == (3, 3):
        return theta
    if theta.shape[-2:] != (2, 3):
        raise ValueError(f"theta: shape {tuple(theta.shape)} is no matrix family's; must be "
                         "(B, 2, 3) or (B, 3, 3)")
    zero = torch.zeros_like(theta[..., :1, :2])
    return torch.cat([theta, torch.cat([zero, torch.ones_like(zero[..., :1])], dim=-1)], dim=-2)


def compose(outer, inner):
    """The map p -> outer(inner(p)), in the wider of the two shapes; bottom-right entry 1 or -1.

    Sampling by `outer` and then, from the result, by `inner` equals sampling once by
    compose(outer, inner).
    """
    product = homogeneous(outer) @ homogeneous(inner)
    if outer.shape[-2] == inner.shape[-2] == 2:
        return product[..., :2, :]
    return product / product[..., 2:, 2:].abs()  # its sign says which side of the horizon is seen


def inverse(theta):
    """The map that undoes theta, in theta's shape. Singular maps raise torch.linalg.LinAlgError."""
    inverted = torch.linalg.inv(homogeneous(theta))
    if theta.shape[-2] == 2:
        return inverted[..., :2, :]
    return inverted / inverted[..., 2:, 2:].abs()


def apply(theta, points):
    """Where theta (B, 2, 3) or (B, 3, 3) sends `points` (B or 1, H, W, 2): (B, H, W, 2)."""
    moved = points @ theta[:, None, :, :2].transpose(2, 3) + theta[:, None, None, :, 2]
    return moved if theta.shape[1] == 2 else moved[..., :2] / moved[..., 2:].clamp_min(1e-3)


class Pose(NamedTuple):
    """theta taken apart, each (B,).

    A = R(angle) [[scale_x, scale_x * shear], [0, scale_y]], then the shift.
    """

    angle: torch.Tensor  # radians, in (-pi, pi]
    scale_x: torch.Tensor
    scale_y: torch.Tensor  # negative where theta mirrors
    shear: torch.Tensor
    shift_x: torch.Tensor  # half-widths
    shift_y: torch.Tensor

    @property
    def scale(self):
        """Geometric mean of the two scales, sqrt|det A|."""
        return (self.scale_x * self.scale_y).abs().sqrt()


def decompose(theta):
    """Pose of theta (B, 2, 3); of (B, 3, 3), of its derivative at the picture's centre."""
    if theta.shape[-2:] == (3, 3):
        centre = theta[:, :2, 2:] / theta[:, 2:, 2:]
        # derivative of the projective map at (0, 0)
        linear = theta[:, :2, :2] / theta[:, 2:, 2:] - centre @ theta[:, 2:, :2] / theta[:, 2:, 2:]
        theta = torch.cat([linear, centre], dim=2)
    (a, b, tx), (c, d, ty) = (row.unbind(-1) for row in theta.unbind(-2))
    scale_x = torch.hypot(a, c)
    scale_y, shear = (a * d - b * c) / scale_x, (a * b + c * d) / scale_x.square()
    return Pose(torch.atan2(c, a), scale_x, scale_y, shear, tx, ty)
