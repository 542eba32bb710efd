"""What the transformer does: statistics, findings in words, and the recovery of a known pose."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import distortions, matrices, transforms

# When `findings` speaks. Tried on CIFAR-10 and glyphs: a transformer that undoes any of the known
# distortions exactly stays below all of these.
# mean share of samples outside the picture; turning alone takes at most 17 % out, at 45 degrees
OUTSIDE = 0.25
ZOOMED_OUT = 1.1  # sampling scale from which much outside is due to zooming out, not to shifting
SPOT = 0.25  # root of the sampled area: 8 x 8 of 32 x 32 pixels, a sixteenth
FLIPPED = 0.1  # mean share of the sampled region turned over
# variance left; reading 8 of 32 pixels leaves less to 0.3 % of CIFAR-10, reading 1 of 32 to 40 %
FLAT = 0.01
FEW = 0.1  # share of images that may be spots, or flat, before it is said
UNMOVED = 0.01  # half-widths, a sixth of a pixel at 32: what moves less is not seen
SAME = 0.01  # standard deviation of theta's entries over the images, half-widths at the edge
ROUNDING = 1e-3  # area over the picture's: what is smaller may be turned over by rounding alone
# variance of a normalized picture, far below one grey level: flat ones do not divide by zero
EPSILON = 1e-4

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of `quantiles`
# distortions of `robustness`: quantity of a pose -> values; the middle one is the identity
KNOWN = dict(angle=tuple(range(-180, 181, 30)),  # degrees
             # half-widths
             shift_x=(-0.5, -0.375, -0.25, -0.125, 0.0, 0.125, 0.25, 0.375, 0.5),
             scale=(0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0))  # above 1: smaller


class Statistics(NamedTuple):
    """What the transformer did to each of N images, on the CPU."""

    theta: Tensor  # (N, 2, 3), projective (N, 3, 3), tps (N, control points, 2)
    scale: Tensor  # (N,) sampling scale: the sampled region's size, linear; above 1: zoomed out
    outside: Tensor  # (N,) share of samples outside the picture, in [0, 1]
    moved: Tensor  # (N,) root mean square distance of samples from the identity's, half-widths
    determinant: Tensor  # (N,) sampled area over the picture's; negative: most is turned over
    flipped: Tensor  # (N,) share of the region turned over: all: mirrored, part: folded
    variance_left: Tensor  # (N,) variance of the classifier's input over that of the picture


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Within it, `model` is in evaluation mode, without gradients; its mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def statistics(model, images: Tensor, batch_size: int = 250) -> Statistics:
    """What `model` does to `images` (N, C, S, S), in evaluation mode; its mode is restored."""
    parts = []
    with evaluating(model):
        for batch in images.to(model.device).split(batch_size):
            _, alignment = model(batch, return_alignment=True)
            grid, identity = alignment.grid, transforms.identity_grid(alignment.grid)
            radius = transforms.mean_square_radius
            scale = (radius(grid) / radius(identity)).sqrt()
            moved = (grid - identity).square().sum(-1).mean(dim=(1, 2)).sqrt()
            areas = cell_areas(grid) / cell_areas(identity)
            before, after = _variance(model.normalize(batch)), _variance(alignment.warped)
            area = areas.abs().mean(dim=(1, 2)).copysign(areas.mean(dim=(1, 2)))
            flipped = (areas < -ROUNDING).float().mean(dim=(1, 2))
            parts.append((alignment.theta, scale, outside_share(grid), moved, area, flipped,
                          (after + EPSILON) / (before + EPSILON)))
    return Statistics(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def cell_areas(grid: Tensor) -> Tensor:
    """Signed areas between the points of `grid` (B, H, W, 2): (B, H-1, W-1); < 0: turned over."""
    right, down = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
    return right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]


def outside_share(grid: Tensor) -> Tensor:
    """Share of `grid`'s points (B, H, W, 2) outside the picture, per image: (B,), in [0, 1]."""
    return (grid.abs() > 1).any(dim=-1).float().mean(dim=(1, 2))


def _variance(pictures: Tensor) -> Tensor:
    """Variance over the pixels of (B, C, H, W), mean over the channels: (B,)."""
    return pictures.var(dim=(2, 3)).mean(1)


def findings(measured: Statistics) -> list[str]:
    """What is wrong with the transformer, and what to do, in one text each; none where all is well.

    Texts that begin with "note:" tell of what need not be a fault: that it does nothing, or the
    same to every image. One image cannot show the latter.
    """
    if not all(values.isfinite().all() for values in measured):
        return ["broken: theta is not finite, or too large to measure; start again with a lower "
                "learning_rate or localization_lr_scale"]
    outside, scale = measured.outside.mean().item(), measured.scale.median().item()
    flipped = measured.flipped.mean().item()
    # by the area, so that a line is found too
    spots = (measured.determinant.abs().sqrt() < SPOT).float().mean().item()
    flat = (measured.variance_left < FLAT).float().mean().item()
    faults = {
        f"zoomed out: {outside:.0%} of the samples lie outside the picture, at a sampling scale of "
        f"{scale:.2f}; set outside_weight=1, or scale_weight=10 with max_scale=1.05, or a lower "
        "localization_lr_scale": outside > OUTSIDE and scale > ZOOMED_OUT,
        f"off the picture: {outside:.0%} of the samples lie outside it; set outside_weight=1, or a "
        "lower localization_lr_scale or learning_rate": outside > OUTSIDE and scale <= ZOOMED_OUT,
        f"zoomed in to a spot: it samples less than a sixteenth of the picture, for {spots:.0%} of "
        "the images; set scale_weight=10, which holds the scale between 1/max_scale and max_scale, "
        "or identity_weight=0.05, or a lower localization_lr_scale": spots > FEW,
        f"mirrored or folded: {flipped:.0%} of the sampled region is turned over; set "
        "identity_weight=0.05, or a lower localization_lr_scale, or transform='similarity', which "
        "cannot mirror": flipped > FLIPPED,
        f"constant output: {flat:.0%} of the images reach the classifier with less than {FLAT:.0%} "
        "of their variance, and nothing is left to learn from; start again with a lower "
        "localization_lr_scale or learning_rate, or with identity_weight=0.05": flat > FEW,
    }
    texts = [text for text, found in faults.items() if found]
    # what is wrong comes first, and needs the opposite advice
    advice = "" if texts else ("; if it stays so, try more epochs, a higher localization_lr_scale "
                               "or a lower identity_weight")
    if measured.moved.max() < UNMOVED:
        texts.append(f"note: it does nothing, every image comes out as it went in{advice}")
    elif len(measured.theta) > 1 and measured.theta.std(dim=0).max() < SAME:
        texts.append(f"note: every image gets the same treatment, as from a fixed crop{advice}")
    return texts


def readable(theta: Tensor) -> dict[str, Tensor]:
    """theta as people read it, each (N,): rotation in degrees, scale, shear, shifts in half-widths.

    For a thin plate spline, whose theta is no matrix: that of the affine map nearest to its control
    points. Where a map has collapsed, so that a quantity is not defined, it is 0. A scale that
    overflows is infinite, and what a theta that is not finite says is NaN.
    """
    finite = theta.flatten(1).isfinite().all(dim=1)
    if theta.shape[-1] == 2:
        theta = _nearest_affine(theta)
    pose = matrices.decompose(theta)
    columns = dict(rotation=pose.angle.rad2deg(), scale=pose.scale, shear=pose.shear,
                   shift_x=pose.shift_x, shift_y=pose.shift_y)
    infinite = dict(scale=math.inf)
    return {name: values.nan_to_num(0, infinite.get(name, 0), 0).where(finite, math.nan)
            for name, values in columns.items()}


def _nearest_affine(points: Tensor) -> Tensor:
    """Least-squares affine map (N, 2, 3) from the control points to their places (N, K, 2)."""
    start = transforms.control_points(math.isqrt(points.shape[1]), points.dtype, points.device)
    design = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)  # (K, 3)
    return (torch.linalg.pinv(design) @ points).transpose(1, 2)


def summary(measured: Statistics) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of all Statistics over the images; NaN where not finite."""
    rest = measured._asdict()
    # beside theta's scale, which is that at the centre
    columns = readable(rest.pop("theta")) | dict(sampling_scale=rest.pop("scale")) | rest
    one = len(measured.theta) == 1  # has no deviation
    return {name: dict(mean=values.mean().item(), std=0.0 if one else values.std().item())
            for name, values in columns.items()}


def quantiles(measured: Statistics) -> dict[str, list[float]]:
    """LEVELS of theta as people read it, and of the share outside, over the images.

    Angles are in (-180, 180]: those about 180 degrees are cut apart. NaN where not finite.
    """
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    columns = readable(measured.theta) | dict(outside=measured.outside)
    return {name: values.double().quantile(levels).tolist() for name, values in columns.items()}


def accuracy_against(model, split, quantity: str, values: Sequence[float],
                     batch_size: int = 250) -> list[float]:
    """Accuracy of `model` on `split` (a Split), all distorted alike, for each value of a quantity.

    quantity: one of distortions.UPRIGHT but "bend", in its units; ValueError for others. The value
    that UPRIGHT gives is the reference: the same disc of the picture, resampled in the same way,
    undistorted.
    """
    if quantity not in distortions.UPRIGHT or quantity == "bend":
        raise ValueError(f"quantity: {quantity!r} is unknown; must be one of "
                         f"{', '.join(repr(key) for key in distortions.UPRIGHT if key != 'bend')}")
    accuracies = []
    for value in values:
        row = replace(distortions.DISTORTIONS["projective"], ranges={quantity: (value, value)})
        right = 0
        with evaluating(model):
            for start in range(0, len(split), batch_size):
                batch = split[start:start + batch_size].to(model.device)
                params = distortions.sample_params(row, len(batch), torch.Generator())
                images = distortions.apply(batch.images, params.to(model.device))
                right += (model(images).argmax(1) == batch.labels).sum().item()
        accuracies.append(right / len(split))
    return accuracies


def robustness(model, split, known: Mapping[str, Sequence[float]] = KNOWN) -> dict[str, dict]:
    """Accuracy against known distortions: {quantity: {values, accuracy}}, for JSON.

    About 31 passes over `split`: a thousand images take some seconds. Its images should be
    undistorted.
    """
    return {quantity: dict(values=list(values),
                           accuracy=accuracy_against(model, split, quantity, values))
            for quantity, values in known.items()}


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % interval (low, high) of an accuracy, a fraction, on `count` images (Wilson 1927).

    It covers the choice of the images only: not how much another seed's run would differ.
    """
    z = 1.959964  # the normal distribution's 97.5 % quantile
    half = z * math.sqrt((accuracy * (1 - accuracy) + z * z / (4 * count)) / count)
    low, high = ((accuracy + z * z / (2 * count) + side) / (1 + z * z / count)
                 for side in (-half, half))
    return min(low, accuracy), max(high, accuracy)  # at 0 and 1 rounding could put it outside


BIN = 5  # degrees, of PoseRecovery.histogram


class PoseRecovery(NamedTuple):
    """What remains of a known pose after the transformer, each (N,); zero where it was undone."""

    angle: Tensor  # rotation error, degrees, in [0, 180]
    log_scale: Tensor  # natural logarithm; negative: the picture comes out too large
    shift: Tensor  # half-widths

    def summary(self) -> dict[str, float]:
        """Medians, means and shares of the images; angles in degrees, NaN where not finite.

        mod90: of the angle to the nearest quarter turn, which is all that matters before a
        classifier that is invariant to those.
        """
        mod90 = (self.angle % 90).minimum(90 - self.angle % 90)
        values = dict(
            median_rotation_error=self.angle.median(), mean_rotation_error=self.angle.mean(),
            **{f"within_{name}": (self.angle <= limit).float().mean()
               for name, limit in (("5", 5), ("15", 15), ("22_5", 22.5), ("30", 30))},
            median_rotation_error_mod90=mod90.median(), mean_rotation_error_mod90=mod90.mean(),
            within_5_mod90=(mod90 <= 5).float().mean(),
            within_22_5_mod90=(mod90 <= 22.5).float().mean(),
            median_abs_log_scale=self.log_scale.abs().median(), median_shift=self.shift.median())
        return {name: value.item() for name, value in values.items()}

    def histogram(self) -> list[int]:
        """How many images have a rotation error of 0 to BIN degrees, of BIN to 2 BIN, up to 180."""
        bins = self.angle.nan_to_num(180).clamp(0, 179.999).div(BIN).long()
        return bins.bincount(minlength=180 // BIN).tolist()


def pose_recovery(applied: Tensor | None, predicted: Tensor) -> PoseRecovery | None:
    """How far `predicted` undoes `applied`, both (N, 2, 3) or (N, 3, 3).

    None where it cannot be told: no pose is known, or one of the two is no matrix (a thin plate
    spline). The warped picture shows, at p, the undistorted one at applied(predicted(p)): the
    identity where all is undone.
    """
    if applied is None or applied.shape[-1] != 3 or predicted.shape[-1] != 3:
        return None
    rest = matrices.decompose(matrices.compose(applied.cpu(), predicted.cpu()))
    shift = torch.hypot(rest.shift_x, rest.shift_y)
    return PoseRecovery(rest.angle.abs().rad2deg(), rest.scale.log(), shift)
