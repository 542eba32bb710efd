"""Distortions with a known pose: whole batches on the device, the same on every machine.

theta is what was APPLIED, distorted(p) = original(theta p), in transforms.py's coordinates: it maps
canvas to picture, both [-1, 1], and a transformer undoes it by inverse(theta). On a larger canvas
an upright, centred picture has the canvas ratio as its scale (32 pixels on 48: 1.5).

What stands outside must not give the pose away, or a network reads the frame, not the picture:

- What turns, scales or shears (disc=True) is shown in the canvas's inscribed disc, with one colour
  around it, the same for every pose. A plain rotation then never looks outside the picture. The
  others do, and see the picture's own disc mirrored at its rim: that fill turns along, so it tells
  nothing of the angle that the picture does not (mirroring at the four sides would draw straight
  seams that turn).
- A translation has no other pose than where the frame is. It is mirrored at the sides: no colour to
  trace, only seams are left. Clutter puts patches of other pictures there. Elastic looks out by
  `bend` at most.
- Bicubic: bilinear halves the energy of CIFAR-10's finest detail between 0 and 5 degrees and so
  tells what was turned; bicubic takes 15 %, and hardly changes from 2 degrees on. Where pictures
  may shrink, 2 x 2 samples a pixel: at 1.45 the error against proper filtering falls from 5.1 to
  1.4 grey levels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from .sampler import INTERPOLATIONS, sample
from .transforms import FAMILIES, TPS_POINTS, constant, control_points

# A pose's quantities, and their values where nothing is done. theta is [A | shift] with
# A = R(angle) [[scale_x, scale_x shear], [0, scale_y]], as matrices.decompose takes it apart.
UPRIGHT = dict(angle=0.0,  # degrees, the content turns counter-clockwise
               scale=1.0,  # sqrt(scale_x scale_y), above 1 it looks smaller
               aspect=1.0, shear=0.0,  # scale_x / scale_y
               shift_x=0.0, shift_y=0.0,  # the picture's point at the canvas's centre, half-widths
               tilt_x=0.0, tilt_y=0.0,  # perspective: theta's last row
               bend=0.0)  # elastic: largest displacement of a control point, half-widths
LOG_UNIFORM = ("scale", "aspect")  # all others are uniform
# around the disc: CIFAR-10's mean colour, zero to a network that normalizes
OUTSIDE = (125, 123, 114)
PATCHES = 6  # clutter: patches along each side of the canvas; 8 pixels each on 48


@dataclass(frozen=True)
class Distortion:
    """A row of the table. A changed copy, dataclasses.replace(row, ...), serves as a name does.

    ValueError names a field that cannot be.
    """

    name: str
    family: str  # the smallest transformer family that can undo it (elastic: nearly)
    # quantity -> (low, high); what is not named stays upright
    ranges: Mapping[str, tuple[float, float]]
    canvas: float = 1.0  # size of the canvas over size of the picture
    disc: bool = True  # show the inscribed disc only
    clutter: bool = False  # patches of other pictures outside
    supersample: int = 1
    interpolation: str = "bicubic"

    def __post_init__(self):
        for field, value, known in (("family", self.family, tuple(FAMILIES)),
                                    ("interpolation", self.interpolation, INTERPOLATIONS)):
            if value not in known:
                raise ValueError(f"{field}: {value!r} is unknown; must be one of "
                                 f"{', '.join(known)}")
        # what theta's shape has no place for would be left out without a word
        spline = self.family == "tps"
        known = [key for key in UPRIGHT if (key == "bend") == spline
                 and (self.family == "projective" or not key.startswith("tilt"))]
        for key, (low, high) in self.ranges.items():
            if key not in known:
                raise ValueError(f"ranges: {key!r} is nothing that family={self.family!r} can be "
                                 f"distorted by; must be one of {', '.join(known)}")
            if not (-math.inf < low <= high < math.inf and (low > 0 or key not in LOG_UNIFORM)):
                above = ", above 0" if key in LOG_UNIFORM else ""
                raise ValueError(f"ranges: {key} from {low} to {high}; must be (low, high), "
                                 f"finite{above}")

    def canvas_size(self, size):
        """Pixels along each side of the result, for pictures of `size` pixels."""
        return round(self.canvas * size)


def _xy(name, limit):
    return {f"{name}_x": (-limit, limit), f"{name}_y": (-limit, limit)}


DISTORTIONS = {
    row.name: row
    for row in (
        Distortion("rotation45", "rotation", {"angle": (-45, 45)}),
        Distortion("rotation90", "rotation", {"angle": (-90, 90)}),
        Distortion("rotation", "rotation", {"angle": (-180, 180)}),
        # not turned at all, but shown as turned pictures are: upright pictures' fair comparison
        Distortion("disc", "rotation", {"angle": (0, 0)}),
        # half a half-width on a canvas of 1.5: the whole picture stays in sight
        Distortion("translation", "attention", _xy("shift", 0.5), canvas=1.5, disc=False),
        Distortion("scale", "attention", {"scale": (2 / 3, 3 / 2)}, supersample=2),
        # the paper's rotation, translation, scale: up to 45 degrees, 0.7 to 1.2 times as large
        Distortion("rts", "similarity", supersample=2,
                   ranges={"angle": (-45, 45), "scale": (1 / 1.2, 1 / 0.7), **_xy("shift", 0.25)}),
        Distortion("similarity", "similarity", supersample=2,
                   ranges={"angle": (-180, 180), "scale": (1 / 1.2, 1 / 0.7),
                           **_xy("shift", 0.25)}),
        Distortion("affine", "affine", supersample=2,
                   ranges={"angle": (-45, 45), "scale": (0.8, 1.25), "aspect": (2 / 3, 3 / 2),
                           "shear": (-0.3, 0.3), **_xy("shift", 0.15)}),
        Distortion("projective", "projective", supersample=2,
                   ranges={"angle": (-30, 30), "scale": (0.8, 1.25), **_xy("shift", 0.1),
                           **_xy("tilt", 0.2)}),
        Distortion("elastic", "tps", {"bend": (0, 0.25)}, disc=False),
        Distortion("clutter", "attention", _xy("shift", 0.5), canvas=1.5, disc=False,
                   clutter=True),
    )
}


@dataclass(frozen=True)
class Params:
    """The poses of N images, ready to `apply`; params[index], a tensor or a slice, takes some."""

    distortion: Distortion
    theta: torch.Tensor  # applied: (N, 2, 3), projective (N, 3, 3), elastic (N, control points, 2)
    # clutter: (N, 36, 3) in [0, 1): which picture, and y, x in it; others: (N, 0, 3)
    patches: torch.Tensor

    def __len__(self):
        return len(self.theta)

    def __getitem__(self, index):
        return replace(self, theta=self.theta[index], patches=self.patches[index])

    def to(self, device):
        """The same poses on `device`."""
        return replace(self, theta=self.theta.to(device), patches=self.patches.to(device))


def row_of(name):
    """The row of DISTORTIONS called `name`, ValueError if there is none; a row as it is."""
    if isinstance(name, Distortion):
        return name
    if name not in DISTORTIONS:
        raise ValueError(f"distortion: {name!r} is unknown; must be one of "
                         f"{', '.join(map(repr, DISTORTIONS))}")
    return DISTORTIONS[name]


def sample_params(name, count, generator, **fixed):
    """Random poses of `count` images, from a CPU torch.Generator: Params on the CPU.

    fixed: quantities that are given, a number or a tensor (count,) each, also beyond the range, as
    in sample_params("rotation", 100, generator, angle=30); all else is sampled as without. A longer
    sample starts with a shorter one's poses. Raises ValueError naming what is wrong.
    """
    row = row_of(name)
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise ValueError(f"generator: {generator!r}; must be a torch.Generator on the CPU")
    if unknown := set(fixed) - set(row.ranges):
        raise ValueError(f"{min(unknown)}: the distortion {row.name!r} has "
                         f"{', '.join(row.ranges)} only")
    own = len(row.ranges)
    extra = 3 * PATCHES**2 if row.clutter else 2 * TPS_POINTS**2 if row.family == "tps" else 0
    # float64, so that machines agree on theta to the last bit or so of its float32
    uniform = torch.rand(count, own + extra, generator=generator, dtype=torch.float64)
    pose = {key: torch.full((count,), value, dtype=torch.float64) for key, value in UPRIGHT.items()}
    for (key, (low, high)), u in zip(row.ranges.items(), uniform[:, :own].unbind(1), strict=True):
        pose[key] = low * (high / low) ** u if key in LOG_UNIFORM else low + (high - low) * u
    pose |= {key: torch.as_tensor(value, dtype=torch.float64).expand(count)
             for key, value in fixed.items()}
    patches = (uniform[:, own:].float().reshape(count, PATCHES**2, 3) if row.clutter
               else torch.empty(count, 0, 3))
    return Params(row, _theta(row, pose, uniform[:, own:]).float(), patches)


def _theta(row, pose, extra):
    """theta in the shape of the row's family.

    pose: quantity -> (N,); extra: what bends a spline, (N, 2 K).
    """
    if row.family == "tps":
        points = control_points(TPS_POINTS)
        return points + pose["bend"].view(-1, 1, 1) * (2 * extra.reshape(-1, *points.shape) - 1)
    angle, shear = pose["angle"] * (math.pi / 180), pose["shear"]
    cos, sin = angle.cos(), angle.sin()
    x, y = pose["scale"] * pose["aspect"].sqrt(), pose["scale"] / pose["aspect"].sqrt()
    theta = torch.stack([cos * x, cos * x * shear - sin * y, pose["shift_x"],
                         sin * x, sin * x * shear + cos * y, pose["shift_y"],
                         pose["tilt_x"], pose["tilt_y"], torch.ones_like(angle)], dim=1)
    theta = theta.reshape(-1, 3, 3)
    theta[:, :, :2] *= row.canvas
    return theta if row.family == "projective" else theta[:, :2]


@torch.no_grad()
def apply(images, params):
    """The distorted pictures (B, C, H', H') in [0, 1]; H' is H times the canvas.

    images: (B, C, H, H), uint8 or in [0, 1]. params: their B poses, on the same device, in whose
    precision, float32 or float64, all is computed. Bad input: ValueError.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: shape {tuple(images.shape)}; must be square pictures "
                         "(B, C, H, H)")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"images: dtype {images.dtype}; must be uint8 in [0, 255] or floating "
                         "point in [0, 1]")
    if len(params) != len(images) or params.theta.device != images.device:
        raise ValueError(f"params: {len(params)} poses on {params.theta.device}; must be "
                         f"{len(images)} on {images.device}")
    row, size = params.distortion, params.distortion.canvas_size(images.shape[-1])
    whole, images = images.dtype == torch.uint8, images.to(params.theta.dtype)
    images = images / 255 if whole else images
    with torch.autocast(images.device.type, enabled=False):
        grid = FAMILIES[row.family].grid_of(params.theta, size * row.supersample)
        if row.disc:  # mirrored at the rim of the picture's disc: at r > 1, read at 2 - r
            radius = torch.hypot(*grid.unbind(-1)).clamp_min_(1)[..., None]
            grid = grid * (2 / radius - 1).clamp_min(0)
        warped = sample(images, grid, "reflection", row.interpolation, row.supersample)
    if row.disc:
        colour = outside_colour(images.shape[1], images.device) / 255
        warped = torch.where(_disc(size, images.device), warped, colour.to(warped.dtype))
    if row.clutter:
        # the share of each pixel that the picture covers: a ramp, so no rounding moves its edge
        cover = ((1 - grid.abs()) * images.shape[-1] / 2 + 0.5).clamp(0, 1).prod(dim=-1)
        warped = torch.lerp(_patchwork(images, params.patches, size), warped, cover[:, None])
    return warped.clamp_(0, 1)  # bicubic overshoots


@constant
def _disc(size, device):
    """Mask (size, size) of the disc through the outermost pixels' centres.

    In whole numbers, so exact; and no larger, so that turning never reads beyond the picture's last
    centres.
    """
    across = 2 * torch.arange(size, device=device) - (size - 1)  # twice that from the middle
    return across.square()[:, None] + across.square() <= (size - 1) ** 2


@constant
def outside_colour(channels, device):
    """Grey levels (channels, 1, 1) of what is no picture: CIFAR-10's mean, or a middle grey."""
    levels = OUTSIDE if channels == len(OUTSIDE) else (128,) * channels
    return torch.tensor(levels, device=device).view(-1, 1, 1)


def _patchwork(images, patches, size):
    """Canvases (B, C, size, size) of patches, cut unscaled from the other pictures of the batch."""
    count, channels, width, _ = images.shape
    side = -(-size // PATCHES)
    which, y, x = patches.unbind(-1)  # (B, PATCHES^2) each
    # never the picture itself, unless it is alone
    own = torch.arange(count, device=images.device)[:, None]
    other = (own + 1 + (which * (count - 1)).long()) % count
    y, x = (y * (width - side + 1)).long(), (x * (width - side + 1)).long()
    # the batch as one list of pixels: where each patch starts in it, and from there each pixel
    start = ((other * width + y) * width + x).view(count, PATCHES, 1, PATCHES, 1)
    place = torch.arange(side, device=images.device)
    index = start + place.view(-1, 1, 1) * width + place
    index = index.reshape(count, PATCHES * side, PATCHES * side)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels[index[:, :size, :size]].permute(0, 3, 1, 2)
