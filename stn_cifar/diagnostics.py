"""What the transformer is doing: theta read by people, and whether a known pose was really undone."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import transforms
from .sampler import outside_share


class Survey(NamedTuple):
    """What the transformer answered for each of N images, on the CPU."""

    theta: Tensor  # (N, 2, 3), projective (N, 3, 3), tps (N, control points, 2)
    scale: Tensor  # (N,) size of the sampled region over the picture's, linear; above 1: zoomed out
    outside: Tensor  # (N,) share of samples outside the picture, in [0, 1]
    moved: Tensor  # (N,) root mean square distance of samples from where the identity puts them, half-widths


@torch.no_grad()
def survey(model, images: Tensor, batch_size: int = 1000) -> Survey:
    """The model's answers for `images` (N, C, S, S), in evaluation mode; the training mode is restored."""
    was_training = model.training
    model.eval()
    parts = []
    for batch in images.to(model.mean.device).split(batch_size):
        alignment = model.align(model.normalize(batch))
        grid, still = alignment.grid, transforms.identity_grid(alignment.grid)
        scale = (transforms.spread(grid) / transforms.spread(still)).sqrt()
        moved = (grid - still).square().sum(-1).mean(dim=(1, 2)).sqrt()
        parts.append((alignment.theta, scale, outside_share(grid), moved))
    model.train(was_training)
    return Survey(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def readable(theta: Tensor) -> dict[str, Tensor]:
    """theta as people read it, each (N,): rotation in degrees, scale, shear, shift_x and shift_y in half-widths.

    For a thin plate spline, whose theta is no matrix: that of the affine map nearest to its control points.
    """
    if theta.shape[-1] == 2:
        theta = _nearest_affine(theta)
    pose = transforms.decompose(theta)
    return dict(rotation=pose.angle.rad2deg(), scale=pose.scale, shear=pose.shear,
                shift_x=pose.shift_x, shift_y=pose.shift_y)


def _nearest_affine(points: Tensor) -> Tensor:
    """Least-squares affine map (N, 2, 3) from the control points to where they are sampled (N, K, 2)."""
    start = transforms.control_points(math.isqrt(points.shape[1]), points.dtype, points.device)
    design = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)  # (K, 3)
    return (torch.linalg.pinv(design) @ points).transpose(1, 2)


def summary(seen: Survey) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the images of everything in a Survey, as plain numbers for JSON."""
    columns = readable(seen.theta) | dict(grid_scale=seen.scale, outside=seen.outside, moved=seen.moved)
    return {name: dict(mean=values.mean().item(), std=values.std().item()) for name, values in columns.items()}


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


def pose_recovery(applied: Tensor | None, answered: Tensor) -> Recovery | None:
    """How far `answered` undoes `applied`, both (N, 2, 3) or (N, 3, 3): the pose of applied(answered(p)).

    None where it cannot be told: no pose is known, or one of the two is no matrix (a thin plate spline).
    The warped picture shows, at p, the undistorted one at applied(answered(p)): the identity where all is undone.
    """
    if applied is None or applied.shape[-1] != 3 or answered.shape[-1] != 3:
        return None
    left = transforms.decompose(transforms.compose(applied.cpu(), answered.cpu()))
    return Recovery(left.angle.abs().rad2deg(), left.scale.log(), torch.hypot(left.shift_x, left.shift_y))
