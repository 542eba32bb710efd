"""What the transformer is doing: theta read by people, what is wrong in words, and whether a known pose was undone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import distortions, transforms
from .data import Split
from .sampler import outside_share

# When the collapse monitor speaks. Tried on CIFAR-10 and glyphs: a transformer that undoes any of the known distortions
# exactly stays below all of them.
OUTSIDE = 0.25  # mean share of samples outside the picture; turning alone takes at most 17 % out, at 45 degrees
ZOOMED_OUT = 1.1  # the region's size from which much outside is due to zooming out, not to shifting
SPOT = 0.25  # root of the region's area below which it is a spot: 8 x 8 of 32 x 32 pixels, a sixteenth
FLIPPED = 0.1  # mean share of the region turned over
FLAT = 0.01  # variance left; reading 8 of 32 pixels leaves less to 0.3 % of CIFAR-10, reading 1 of 32 to 40 %
FEW = 0.1  # share of images that may be spots, or flat, before it is said
STILL = 0.01  # half-widths, a sixth of a pixel at 32: what moves less is not seen
SAME = 0.01  # standard deviation over the images of theta's entries, which are in half-widths at the picture's edge
ROUNDING = 1e-3  # area over the picture's: what is smaller may be turned over by rounding alone
EPSILON = 1e-4  # variance of a normalized picture, far below one grey level: keeps flat pictures from dividing by zero

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of `quantiles`
# the distortions of `robustness`: quantity of a pose -> values; the middle one is the identity
KNOWN = dict(angle=tuple(range(-180, 181, 30)),  # degrees
             shift_x=(-0.5, -0.375, -0.25, -0.125, 0.0, 0.125, 0.25, 0.375, 0.5),  # half-widths
             scale=(0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0))  # above 1: smaller


class Survey(NamedTuple):
    """What the transformer answered for each of N images, on the CPU."""

    theta: Tensor  # (N, 2, 3), projective (N, 3, 3), tps (N, control points, 2)
    scale: Tensor  # (N,) size of the sampled region over the picture's, linear; above 1: zoomed out
    outside: Tensor  # (N,) share of samples outside the picture, in [0, 1]
    moved: Tensor  # (N,) root mean square distance of samples from where the identity puts them, half-widths
    determinant: Tensor  # (N,) area of the sampled region over the picture's; negative: most of it is turned over
    flipped: Tensor  # (N,) share of the region that is turned over, in [0, 1]: all of it mirrored, part of it folded
    variance_left: Tensor  # (N,) variance over the pixels of what the classifier sees, over that of the picture


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Within it, `model` is in evaluation mode and no gradient is kept; its mode is restored, come what may."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def survey(model, images: Tensor, batch_size: int = 250) -> Survey:
    """The model's answers for `images` (N, C, S, S), in evaluation mode; the training mode is restored."""
    parts = []
    with evaluating(model):
        for batch in images.to(model.mean.device).split(batch_size):
            pictures = model.normalize(batch)
            alignment = model.align(pictures)
            grid, still = alignment.grid, transforms.identity_grid(alignment.grid)
            scale = (transforms.spread(grid) / transforms.spread(still)).sqrt()
            moved = (grid - still).square().sum(-1).mean(dim=(1, 2)).sqrt()
            areas = cell_areas(grid) / cell_areas(still)
            left = (_variance(alignment.warped) + EPSILON) / (_variance(pictures) + EPSILON)
            area = areas.abs().mean(dim=(1, 2)).copysign(areas.mean(dim=(1, 2)))
            flipped = (areas < -ROUNDING).float().mean(dim=(1, 2))
            parts.append((alignment.theta, scale, outside_share(grid), moved, area, flipped, left))
    return Survey(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def cell_areas(grid: Tensor) -> Tensor:
    """Signed areas of the cells between the points of `grid` (B, H, W, 2): (B, H-1, W-1), negative if turned over."""
    right, down = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
    return right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]


def _variance(pictures: Tensor) -> Tensor:
    """Variance over the pixels of (B, C, H, W), mean over the channels: (B,)."""
    return pictures.var(dim=(2, 3)).mean(1)


def verdict(seen: Survey) -> list[str]:
    """What is wrong with the transformer, and what to do, in one text each; none where it is alive and behaves well.

    Texts that begin with "note:" tell of what need not be a fault: that it does nothing, or the same to every image.
    One image cannot show the latter.
    """
    if not seen.theta.isfinite().all():
        return ["broken: theta is not finite; start again with a lower learning_rate or localization_lr_scale"]
    outside, scale, flipped = seen.outside.mean().item(), seen.scale.median().item(), seen.flipped.mean().item()
    # by the area, so that a line is found too
    spots = (seen.determinant.abs().sqrt() < SPOT).float().mean().item()
    flat = (seen.variance_left < FLAT).float().mean().item()
    texts = []
    if outside > OUTSIDE and scale > ZOOMED_OUT:
        texts.append(f"zoomed out: {outside:.0%} of what it reads lies outside the picture, as the region is "
                     f"{scale:.2f} times the picture's size; set outside_weight=1, or scale_weight=10 with "
                     "max_scale=1.05, or a lower localization_lr_scale")
    elif outside > OUTSIDE:
        texts.append(f"off the picture: {outside:.0%} of what it reads lies outside; set outside_weight=1, or a lower "
                     "localization_lr_scale or learning_rate")
    if spots > FEW:
        texts.append(f"zoomed in to a spot: it reads less than a sixteenth of the picture, for {spots:.0%} of the "
                     "images; set scale_weight=10, which holds the scale between 1/max_scale and max_scale, or "
                     "identity_weight=0.05, or a lower localization_lr_scale")
    if flipped > FLIPPED:
        texts.append(f"mirrored or folded: {flipped:.0%} of what it reads is turned over; set identity_weight=0.05, or "
                     "a lower localization_lr_scale, or transform='similarity', which cannot mirror")
    if flat > FEW:
        texts.append(f"constant output: {flat:.0%} of the images reach the classifier with less than {FLAT:.0%} of "
                     "their variance, and nothing is left to learn from; start again with a lower "
                     "localization_lr_scale or learning_rate, or with identity_weight=0.05")
    advice = ("; if it stays so, try more epochs, a higher localization_lr_scale or a lower identity_weight"
              if not texts else "")  # what is wrong comes first, and needs the opposite
    if seen.moved.max() < STILL:
        texts.append(f"note: it does nothing, every picture comes out as it went in{advice}")
    elif len(seen.theta) > 1 and seen.theta.std(dim=0).max() < SAME:
        texts.append(f"note: every image gets the same treatment, as from a fixed crop{advice}")
    return texts


def readable(theta: Tensor) -> dict[str, Tensor]:
    """theta as people read it, each (N,): rotation in degrees, scale, shear, shift_x and shift_y in half-widths.

    For a thin plate spline, whose theta is no matrix: that of the affine map nearest to its control points.
    Where a map has collapsed, so that a quantity is not defined, it is 0.
    """
    if theta.shape[-1] == 2:
        theta = _nearest_affine(theta)
    pose = transforms.decompose(theta)
    columns = dict(rotation=pose.angle.rad2deg(), scale=pose.scale, shear=pose.shear,
                   shift_x=pose.shift_x, shift_y=pose.shift_y)
    return {name: values.nan_to_num(0, posinf=0, neginf=0) for name, values in columns.items()}


def _nearest_affine(points: Tensor) -> Tensor:
    """Least-squares affine map (N, 2, 3) from the control points to where they are sampled (N, K, 2)."""
    start = transforms.control_points(math.isqrt(points.shape[1]), points.dtype, points.device)
    design = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)  # (K, 3)
    return (torch.linalg.pinv(design) @ points).transpose(1, 2)


def summary(seen: Survey) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the images of everything in a Survey, as plain numbers for JSON."""
    rest = seen._asdict()
    # the grid's scale has a name of its own beside theta's, which is that at the centre
    columns = readable(rest.pop("theta")) | dict(grid_scale=rest.pop("scale")) | rest
    one = len(seen.theta) == 1  # has no deviation
    return {name: dict(mean=values.mean().item(), std=0.0 if one else values.std().item())
            for name, values in columns.items()}


def quantiles(seen: Survey) -> dict[str, list[float]]:
    """LEVELS of theta as people read it, and of the share outside, over the images: plain numbers for JSON.

    Angles are in (-180, 180]: those spread about 180 degrees are cut apart.
    """
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    columns = readable(seen.theta) | dict(outside=seen.outside)
    return {name: values.double().quantile(levels).tolist() for name, values in columns.items()}


def accuracy_against(model, split: Split, quantity: str, values: Sequence[float], batch_size: int = 250) -> list[float]:
    """Accuracy of `model` on the images of `split`, all distorted alike, for each of `values` of one `quantity`.

    quantity: one of distortions.UPRIGHT but "bend", in its units; ValueError for others. The value that UPRIGHT gives
    is the reference: the same disc of the picture, resampled in the same way, undistorted.
    """
    if quantity not in distortions.UPRIGHT or quantity == "bend":
        raise ValueError(f"quantity: {quantity!r} is unknown; must be one of "
                         f"{', '.join(repr(key) for key in distortions.UPRIGHT if key != 'bend')}")
    device, accuracies = model.mean.device, []
    for value in values:
        row = replace(distortions.DISTORTIONS["projective"], ranges={quantity: (value, value)})
        right = 0
        with evaluating(model):
            for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
                drawn = distortions.draw(row, len(images), torch.Generator())
                guesses = model(distortions.apply(images.to(device), drawn.to(device))).argmax(1)
                right += (guesses == labels.to(device)).sum().item()
        accuracies.append(right / len(split))
    return accuracies


def robustness(model, split: Split, known: Mapping[str, Sequence[float]] = KNOWN) -> dict[str, dict[str, list[float]]]:
    """Accuracy against known distortions: quantity -> values and accuracies, plain numbers for JSON.

    About 31 passes over `split`: a thousand images take some seconds. Its images should be undistorted.
    """
    return {quantity: dict(values=list(values), accuracy=accuracy_against(model, split, quantity, values))
            for quantity, values in known.items()}


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % interval (low, high) of an accuracy, a fraction, measured on `count` images (Wilson 1927).

    It covers the choice of the images only: not how much another seed's run would differ.
    """
    z = 1.959964  # the normal distribution's 97.5 % quantile
    half = z * math.sqrt((accuracy * (1 - accuracy) + z * z / (4 * count)) / count)
    low, high = ((accuracy + z * z / (2 * count) + side) / (1 + z * z / count) for side in (-half, half))
    return min(low, accuracy), max(high, accuracy)  # at 0 and 1 rounding could put it outside


BIN = 5  # degrees, of Recovery.histogram


class Recovery(NamedTuple):
    """What is left of a known pose after the transformer's answer, each (N,); zero where it was undone."""

    angle: Tensor  # degrees, in [0, 180]
    log_scale: Tensor  # natural logarithm; negative: the picture comes out too large
    shift: Tensor  # half-widths

    def summary(self) -> dict[str, float]:
        """Medians, and the shares of images within 15 and within 30 degrees, as plain numbers for JSON."""
        return dict(
            median_angle=self.angle.median().item(),
            within_15=(self.angle <= 15).float().mean().item(),
            within_30=(self.angle <= 30).float().mean().item(),
            median_abs_log_scale=self.log_scale.abs().median().item(),
            median_shift=self.shift.median().item(),
        )

    def histogram(self) -> list[int]:
        """How many images are left with an angle of 0 to BIN degrees, of BIN to 2 BIN, and so on up to 180."""
        return self.angle.clamp(0, 179.999).div(BIN).long().bincount(minlength=180 // BIN).tolist()


def pose_recovery(applied: Tensor | None, answered: Tensor) -> Recovery | None:
    """How far `answered` undoes `applied`, both (N, 2, 3) or (N, 3, 3): the pose of applied(answered(p)).

    None where it cannot be told: no pose is known, or one of the two is no matrix (a thin plate spline).
    The warped picture shows, at p, the undistorted one at applied(answered(p)): the identity where all is undone.
    """
    if applied is None or applied.shape[-1] != 3 or answered.shape[-1] != 3:
        return None
    left = transforms.decompose(transforms.compose(applied.cpu(), answered.cpu()))
    return Recovery(left.angle.abs().rad2deg(), left.scale.log(), torch.hypot(left.shift_x, left.shift_y))
