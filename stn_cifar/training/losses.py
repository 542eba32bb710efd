"""The terms of the loss that concern the transformer, one table; each is weighted by `fit`.

A term takes the Alignment of a batch and what is known of it, and gives a scalar. All but the pose
bins' read the sampling grid alone, so they serve every transformer family.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import matrices, transforms


class Known(NamedTuple):
    """What the loss knows of a batch, beside the labels."""

    applied: torch.Tensor | None = None  # theta by which each image was distorted
    true_params: torch.Tensor | None = None  # (B, num_params) that undo it, with pose bins
    pose_bins: object = None  # the transformer's PoseBins
    max_scale: float = 1.5  # from which `scale` sets in


def outside(alignment, known):
    """How far samples lie outside the picture, half-widths: mean over samples and both axes."""
    return F.relu(alignment.grid.abs() - 1).mean()


def identity(alignment, known):
    """Mean squared distance of samples from where the identity puts them, half-widths squared."""
    grid = alignment.grid
    return (grid - transforms.identity_grid(grid)).square().sum(-1).mean()


def scale(alignment, known):
    """Mean squared excess of |log sampling scale| over log max_scale."""
    grid = alignment.grid
    radius = transforms.mean_square_radius
    area = radius(grid) / radius(transforms.identity_grid(grid))
    log_scale = 0.5 * area.clamp_min(1e-6).log()  # finite even where the grid is but a point
    return F.relu(log_scale.abs() - math.log(known.max_scale)).square().mean()


def pose(alignment, known):
    """How far the prediction is from the known pose.

    Pose bins: their divergence from the true one, nats. Else: mean squared distance of samples from
    where they would lie had the pose been undone exactly, half-widths squared.
    """
    if alignment.pose_logits is not None:
        return known.pose_bins.loss(alignment.pose_logits, known.true_params)
    grid = alignment.grid
    undone = matrices.apply(known.applied, grid)  # applied(predicted(p)): p, if all is undone
    return (undone - transforms.identity_grid(grid)).square().sum(-1).mean()


# name -> term; Config has a field NAME_weight for these four, `extra_losses` takes further rows
LOSSES = dict(outside=outside, identity=identity, scale=scale, pose=pose)


def transformer_loss(alignment, known, weights):
    """The sum of the terms in `weights`, {name: weight}: a scalar, 0 if there is none.

    ValueError names a term that gives anything else.
    """
    terms = {name: LOSSES[name](alignment, known) for name, weight in weights.items() if weight}
    for name, term in terms.items():
        shape = getattr(term, "shape", () if isinstance(term, (int, float)) else None)
        if shape != ():
            raise ValueError(f"LOSSES[{name!r}]: it gives {tuple(shape) if shape else term}; must "
                             "be a scalar, such as the mean over the batch")
    return sum(weights[name] * term for name, term in terms.items())
