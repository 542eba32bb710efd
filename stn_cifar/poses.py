"""A distribution over poses: what a localization network that is taught pose answers with.

One number for the pose, learnt by regression, is the mean of all poses that a picture may have: of "this way up or
upside down", something in between that is neither. So each quantity of the pose is cut into cells, the network answers
with logits over them, and the pose is read off around the most likely cell. The class loss stays out: reading is done
without gradients, and what teaches the network is the known pose of its training pictures, by `loss`, alone.

A distribution for each quantity by itself: for what is read together, turn, size and place, they are near enough
independent. Poses here are the transformer's answers, theta as in transforms.py: the inverse of what was applied.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import transforms

# How wide the target is around the true pose, standard deviation, and how far from the likeliest cell is read, cells.
TARGET = 1.3
READ = 2
APART = math.radians(45)  # two hypotheses about the turn are further apart than this


class Axis(NamedTuple):
    """A quantity of the pose, cut into equal cells; in the middle of one of them it is 0."""

    span: float  # of all cells together
    circular: bool = False

    def zero(self, cells):
        """The cell of 0: the middle one; on the circle that of the first quarter, which so lies around upright."""
        return (cells // 4 if self.circular else cells) // 2


ANGLE = Axis(2 * math.pi, circular=True)
LOG_SCALE = Axis(2 * math.log(2))
SHIFT = Axis(2.0)  # half-widths
# the families that can be taught: their parameters, in order
AXES = dict(rotation=(ANGLE,), similarity=(ANGLE, LOG_SCALE, SHIFT, SHIFT))
AXES["rotation, modulo 90 degrees"] = (Axis(math.pi / 2, circular=True),)


class Hypothesis(NamedTuple):
    """One pose that each of B pictures may have."""

    params: torch.Tensor  # (B, num_params) of the transformer family
    probability: torch.Tensor  # (B,): what lies in the cells that it was read from


def num_logits(transform, cells):
    """Length of the answer for the family `transform`, `cells` for each quantity."""
    return cells * len(AXES[transform])


def start(transform, cells):
    """The answer (num_logits,) of a fresh network: near to all poses being alike, the identity a little likelier."""
    return torch.cat([_bell(axis, torch.zeros(1), cells)[0] for axis in AXES[transform]])


def undoing(applied, transform):
    """Parameters (B, num_params) of the family that undo `applied`, theta (B, 2, 3) or (B, 3, 3), as far as it can."""
    # the inverse up to a factor, by cross products: library calls would check for singular maps, and make a GPU wait
    a, b, c = transforms.homogeneous(applied).unbind(1)
    inverse = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2)
    true = transforms.decompose(inverse / inverse[:, 2:, 2:])
    quantities = [true.angle, true.scale.log(), true.shift_x, true.shift_y]
    return torch.stack(quantities[:len(AXES[transform])], dim=1)


def loss(logits, true, transform):
    """Divergence of the answers `logits` (B, num_logits) from the `true` parameters (B, num_params), nats: a scalar.

    The mean over pictures of the Kullback-Leibler divergence from a bell around the true value, summed over the pose's
    quantities: 0 where they agree.
    """
    axes = AXES[transform]
    answers = logits.float().chunk(len(axes), dim=1)
    return sum(F.kl_div(answer.log_softmax(1), _bell(axis, values, answer.shape[1]), reduction="batchmean")
               for axis, values, answer in zip(axes, true.unbind(1), answers, strict=True))


@torch.no_grad()
def hypotheses(logits, transform, count=1):
    """The `count` most likely poses of each picture by the answers `logits` (B, num_logits), likeliest first.

    They differ in the turn, by 45 degrees and five cells at least; scale and shift are those of the likeliest for all.
    """
    (angle, *others), (turns, *rest) = AXES[transform], logits.float().chunk(len(AXES[transform]), dim=1)
    fixed = [_read(axis, answer.softmax(1))[0] for axis, answer in zip(others, rest, strict=True)]
    left, found = turns.softmax(1), []
    for _ in range(count):
        value, probability = _read(angle, left)
        found.append(Hypothesis(torch.stack([value, *fixed], dim=1), probability))
        cell = angle.span / left.shape[1]
        left = left * (_distance(angle, value, left.shape[1]).abs() * cell > max(APART, (2 * READ + 1) * cell))
    return found


def _distance(axis, values, cells):
    """How far each cell's middle lies from `values` (B,), in cells: (B, cells), the short way round on a circle."""
    places = values * (cells / axis.span) + axis.zero(cells)
    distance = torch.arange(cells, device=values.device) - places[:, None]
    return (distance + cells / 2) % cells - cells / 2 if axis.circular else distance


def _bell(axis, values, cells):
    """The target: probabilities (B, cells) that fall off around `values` (B,)."""
    return (-0.5 * (_distance(axis, values, cells) / TARGET).square()).softmax(1)


def _read(axis, probabilities):
    """Mean of the cells around the likeliest (B,), and the probability that lies in them (B,)."""
    cells = probabilities.shape[1]
    likeliest = (probabilities.argmax(1) - axis.zero(cells)) * (axis.span / cells)
    distance = _distance(axis, likeliest, cells)
    near = probabilities * (distance.abs() < READ + 0.5)
    mass = near.sum(1)
    return likeliest + (near * distance).sum(1) / mass.clamp_min(1e-12) * (axis.span / cells), mass
