"""A distribution over poses: what a pose-supervised localization network predicts.

One number for the pose, learnt by regression, is the mean of all poses that a picture may have: of
"this way up or upside down", something in between that is neither. So each quantity of the pose is
cut into bins, the network predicts logits over them, and the pose is decoded around the likeliest
bin. No gradient of the class loss passes: the known pose of the training pictures is what teaches
it, by `PoseBins.loss`. Each quantity has a distribution of its own: turn, size and place, seen
together, are near enough independent.

Poses here are parameters of a transformer family: the inverse of what was applied to the picture.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import matrices

TARGET_STD = 1.3  # bins: width of the target around the true pose
DECODE_REACH = 2  # bins on either side of the likeliest one that decoding averages over
MIN_APART = math.radians(45)  # two of the top-k poses differ in angle by more than this


class Axis(NamedTuple):
    """A quantity of the pose, cut into equal bins; in the middle of one of them it is 0."""

    span: float  # of all bins together
    circular: bool = False

    def zero_bin(self, bins):
        """The middle bin; on a circle that of the first quarter, which so lies around upright."""
        return (bins // 4 if self.circular else bins) // 2


class Pose(NamedTuple):
    """One pose that each of B pictures may have."""

    params: torch.Tensor  # (B, num_params) of the transformer family
    probability: torch.Tensor  # (B,): of the bins that it was decoded from


ANGLE = Axis(2 * math.pi, circular=True)
LOG_SCALE = Axis(2 * math.log(2))
SHIFT = Axis(2.0)  # half-widths
# family -> its parameters, in order, as quantities that bins can span
AXES = dict(rotation=(ANGLE,), similarity=(ANGLE, LOG_SCALE, SHIFT, SHIFT))


@dataclass(frozen=True)
class PoseBins:
    """`bins` for each parameter of the family `transform` ("rotation" or "similarity").

    angle_span: radians that the bins of the angle cover. pi / 2 asks for the angle modulo 90
    degrees only: enough before a classifier to which quarter turns are all the same, as a predictor
    that is equivariant to a subgroup needs canonicalizing only up to it (Kaba et al. 2023,
    arXiv 2211.06489).
    """

    transform: str
    bins: int
    angle_span: float = 2 * math.pi

    def __post_init__(self):
        if self.transform not in AXES:
            raise ValueError(f"transform: {self.transform!r} has no pose bins; must be one of "
                             f"{', '.join(map(repr, AXES))}")
        if self.bins % 4 or self.bins < 12:
            raise ValueError(f"pose_bins: {self.bins}; must be a multiple of 4 from 12 on, "
                             "such as 36")

    @property
    def axes(self):
        """One Axis for each parameter of the family."""
        return (Axis(self.angle_span, circular=True), *AXES[self.transform][1:])

    @property
    def num_logits(self):
        """Values that the localization network puts out for one picture."""
        return self.bins * len(self.axes)

    def initial_logits(self):
        """(num_logits,) of a fresh network: nearly uniform, the identity a little likelier."""
        zero = torch.zeros(1)
        return torch.cat([_target(axis, zero, self.bins)[0] for axis in self.axes])

    def loss(self, logits, true_params):
        """Divergence of `logits` (B, num_logits) from `true_params` (B, num_params), in nats.

        Mean over pictures of the Kullback-Leibler divergence from a bell around the true value,
        summed over the pose's quantities: 0 where they agree. true_params: what undoes the pose,
        as `true_params` gives it (angles in radians).
        """
        if true_params.shape != (len(logits), len(self.axes)):
            raise ValueError(f"true_params: shape {tuple(true_params.shape)}; must be "
                             f"{(len(logits), len(self.axes))}")
        return sum(F.kl_div(logits.log_softmax(1), _target(axis, values, self.bins),
                            reduction="batchmean")
                   for axis, values, logits in zip(self.axes, true_params.unbind(1),
                                                   self._split(logits), strict=True))

    @torch.no_grad()
    def decode(self, logits):
        """The likeliest pose of each picture by `logits` (B, num_logits)."""
        return self.top_k(logits, 1)[0]

    @torch.no_grad()
    def top_k(self, logits, k):
        """The k likeliest poses of each picture, likeliest first: [Pose].

        They differ in the angle, by 45 degrees and five bins at least; scale and shift are those
        of the likeliest for all.
        """
        (angle, *others), (logits, *rest) = self.axes, self._split(logits)
        others = [_decode(axis, values.softmax(1))[0]
                  for axis, values in zip(others, rest, strict=True)]
        remaining, poses = logits.softmax(1), []
        bin_width = angle.span / self.bins
        apart = max(MIN_APART, (2 * DECODE_REACH + 1) * bin_width)
        for _ in range(k):
            value, probability = _decode(angle, remaining)
            poses.append(Pose(torch.stack([value, *others], dim=1), probability))
            distance = _distance(angle, value, self.bins).abs() * bin_width
            remaining = remaining * (distance > apart)
        return poses

    def _split(self, logits):
        """logits (B, num_logits) as one (B, bins) for each quantity, float32."""
        if logits.shape[1:] != (self.num_logits,):
            raise ValueError(f"pose logits: shape {tuple(logits.shape)}; must be (B, "
                             f"{self.num_logits})")
        return logits.float().chunk(len(self.axes), dim=1)


def true_params(applied, transform):
    """Parameters (B, num_params) of the family that undo `applied`, theta (B, 2, 3) or (B, 3, 3).

    transform: a key of AXES; what it has no parameter for is left.
    """
    if transform not in AXES:
        raise ValueError(f"transform: {transform!r}; must be one of {', '.join(map(repr, AXES))}")
    # the inverse up to a factor, by cross products: torch.linalg.inv checks for singular maps, for
    # which a GPU waits
    a, b, c = matrices.homogeneous(applied).unbind(1)
    rows = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    inverse = torch.stack(rows, dim=2)
    pose = matrices.decompose(inverse / inverse[:, 2:, 2:])
    quantities = [pose.angle, pose.scale.log(), pose.shift_x, pose.shift_y]
    return torch.stack(quantities[:len(AXES[transform])], dim=1)


def _distance(axis, values, bins):
    """Distance of each bin's middle from `values` (B,), in bins, the short way: (B, bins)."""
    places = values * (bins / axis.span) + axis.zero_bin(bins)
    distance = torch.arange(bins, device=values.device) - places[:, None]
    return (distance + bins / 2) % bins - bins / 2 if axis.circular else distance


def _target(axis, values, bins):
    """Probabilities (B, bins) that fall off around the true `values` (B,)."""
    return (-0.5 * (_distance(axis, values, bins) / TARGET_STD).square()).softmax(1)


def _decode(axis, probabilities):
    """Mean of the bins around the likeliest (B,), and the probability that lies in them (B,)."""
    bins = probabilities.shape[1]
    likeliest = (probabilities.argmax(1) - axis.zero_bin(bins)) * (axis.span / bins)
    distance = _distance(axis, likeliest, bins)
    near = probabilities * (distance.abs() < DECODE_REACH + 0.5)
    mass = near.sum(1)
    offset = (near * distance).sum(1) / mass.clamp_min(1e-12)
    return likeliest + offset * (axis.span / bins), mass
