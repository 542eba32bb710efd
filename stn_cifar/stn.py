"""The spatial transformer network: localization + grid generator + sampler in front of a classifier."""

import math
from typing import NamedTuple

import torch
from torch import nn

from . import poses, transforms
from .classifier import CompactClassifier, LightClassifier, StrongClassifier, TutorialClassifier
from .localization import CompactLocalization, LightLocalization, QuarterTurnLocalization, TutorialLocalization
from .sampler import sample

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Alignment(NamedTuple):
    """What the transformer did to a batch."""

    warped: torch.Tensor  # (B, C, H', W'), normalized: the classifier's input
    theta: torch.Tensor  # (B, 2, 3), projective (B, 3, 3), tps (B, control points, 2)
    grid: torch.Tensor  # (B, k H', k W', 2), k = supersample
    answer: torch.Tensor | None = None  # the logits of a distribution over poses, where the model has one


class STNClassifier(nn.Module):
    """Images to logits through a spatial transformer; built by `build_model(config)`.

    Images are (B, C, S, S), uint8 in [0, 255] or float in [0, 1]; normalization happens in here and nowhere else.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        channels, out = config.channels, config.output_size or config.image_size
        self.output_size = out
        self.family = transforms.FAMILIES[config.transform]
        # the classifier first: so a seed gives it the same start with any transformer, and without one
        self.classifier = make_classifier(config, out)
        self.localization = make_localization(config, self.classifier, self.family) if config.stn else None
        self.answers = config.pose_head or (config.stn and config.pose_cells > 0)  # with a distribution over poses
        self.pose_head = None  # of the control that is told the pose too, but warps nothing
        if config.pose_head:
            self.pose_head = nn.Linear(self.classifier.num_features,
                                       poses.num_logits(config.pose_kind, config.pose_cells))
        mean, std = (CIFAR10_MEAN, CIFAR10_STD) if channels == 3 else ((0.5,), (0.25,))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("identity", self.family.identity(), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images, hypotheses=1):
        """Logits (B, num_classes) of `images` (B, C, S, S), uint8 or float in [0, 1]; ValueError for others.

        hypotheses: with more than one, the images are looked at in so many poses, and the logits are the logarithm of
        the classes' mean probability: with a distribution over poses the most likely ones, weighed by their
        probability; with stn=False, turned by equal angles all the way round.
        """
        check_images(images, self.config)
        if not isinstance(hypotheses, int) or hypotheses < 1:
            raise ValueError(f"hypotheses: {hypotheses!r}; must be a number of poses, 1 or more")
        images = self.normalize(images)
        if hypotheses == 1:
            return self.classifier(self.align(images).warped)
        looks = self._looks(images, hypotheses)
        # float32: a weight of nothing must not become the logarithm of zero
        weighed = [weight.clamp_min(1e-12).log()[:, None] + self.classifier(warped).float().log_softmax(1)
                   for warped, weight in looks]
        total = sum(weight for _, weight in looks).clamp_min(1e-12).log()[:, None]
        return torch.stack(weighed).logsumexp(0) - total

    def _looks(self, images, count):
        """`count` versions of normalized `images` in other poses: [(warped (B, C, S', S'), weight (B,))]."""
        if self.localization is None:
            turns = [2 * math.pi * k / count for k in range(count)]
            rotation = transforms.FAMILIES["rotation"]
            return [(self._warp(images, rotation.theta(torch.full((len(images), 1), turn, device=images.device)),
                                rotation)[0], images.new_full((len(images),), 1 / count)) for turn in turns]
        if not self.config.pose_cells:
            raise ValueError(f"hypotheses: {count}, but this transformer answers with one pose; must be 1, or the "
                             "model one with pose_cells, or with stn=False")
        found = poses.hypotheses(self.localization(images), self.config.pose_kind, count)
        return [(self._warp(images, self.family.theta(params))[0], probability) for params, probability in found]

    def transform(self, images):
        """What the classifier sees of `images`: (warped images (B, C, S', S') in [0, 1], theta), as `forward` does it.

        Pixels outside the picture are the mean colour under padding_mode="zeros": zero, after normalization.
        """
        check_images(images, self.config)
        alignment = self.align(self.normalize(images))
        images = alignment.warped * self.std + self.mean
        return images.clamp(0, 1), alignment.theta  # bicubic overshoots a little

    def normalize(self, images):
        """uint8 [0, 255] or float [0, 1] to zero mean and unit variance per channel."""
        scale = 255 if images.dtype == torch.uint8 else 1
        # one multiply-add: x / (scale std) - mean / std
        return torch.addcmul(-self.mean / self.std, images.to(self.mean.dtype), 1 / (scale * self.std))

    def align(self, images, told=None):
        """Alignment of normalized `images`: predict, warp; with iterations > 1, predict again and compose.

        told: (params (B, num_params), which (B,) of bool): where `which` holds, a distribution over poses is passed
        over, and these parameters are taken instead.

        Every iteration samples the ORIGINAL image through the composed map (Lin & Lucey 2017, arXiv 1612.03897),
        so borders and blur do not pile up.
        """
        if self.localization is None:
            return self._unaligned(images)
        if self.config.pose_cells:
            answer = self.localization(images)
            (best,) = poses.hypotheses(answer, self.config.pose_kind)
            params = best.params if told is None else torch.where(told[1][:, None], told[0], best.params)
            theta = self.family.theta(params)
            warped, grid = self._warp(images, theta)
            return Alignment(warped, theta, grid, answer)
        theta = self._predict(images)
        warped, grid = self._warp(images, theta)
        for _ in range(self.config.iterations - 1):
            theta = self._predict(warped, theta)
            warped, grid = self._warp(images, theta)
        return Alignment(warped, theta, grid)

    def learn(self, images, told=None):
        """(logits, Alignment) of normalized `images`: all that a training step needs, `answer` on the pose included."""
        alignment = self.align(images, told)
        if self.pose_head is None:
            return self.classifier(alignment.warped), alignment
        pooled = self.classifier.pooled(alignment.warped)
        return self.classifier.head(pooled), alignment._replace(answer=self.pose_head(pooled))

    def _predict(self, images, so_far=None):
        """theta for `images`; where they were warped by `so_far` already, the composition of both."""
        params = self.localization(images).float()
        with torch.autocast(params.device.type, enabled=False):  # theta and grid are float32, even under autocast
            step = self.family.theta(params)
            return step if so_far is None else transforms.compose(so_far, step)

    def _warp(self, images, theta, family=None):
        config = self.config
        grid = (family or self.family).grid_of(theta, config.supersample * self.output_size)
        return sample(images, grid, config.padding_mode, config.interpolation, config.supersample), grid

    def _unaligned(self, images):
        """The control without a transformer: the identity, and no resampling where none is needed."""
        theta = self.family.theta(self.identity.expand(len(images), -1))
        if self.output_size == images.shape[-1]:
            return Alignment(images, theta, self.family.grid_of(theta, self.output_size))
        warped, grid = self._warp(images, theta)
        return Alignment(warped, theta, grid)


def make_classifier(config, size):
    """The classifier of `config.model` for pictures of `size` pixels."""
    if config.model == "tutorial":
        return TutorialClassifier(config.channels, size, config.num_classes)
    if config.model == "light":
        return LightClassifier(config.channels, size, config.num_classes, config.width, config.classifier_turns)
    kind = dict(compact=CompactClassifier, strong=StrongClassifier)[config.model]
    return kind(config.channels, size, config.num_classes, config.width)


def make_localization(config, classifier, family):
    """The localization network of `config`, beside its `classifier`; a fresh one answers the identity of `family`."""
    channels, size, cells = config.channels, config.image_size, config.pose_cells
    start = poses.start(config.pose_kind, cells) if cells else family.identity()
    if config.localization_turns:
        return QuarterTurnLocalization(channels, size, start, config.localization_width, config.pose_span == "quarter")
    if config.model == "light":
        shared = classifier.features[:config.shared_layers]
        return LightLocalization(channels, size, start, config.localization_width, shared)
    kind = TutorialLocalization if config.model == "tutorial" else CompactLocalization
    return kind(channels, size, start)


def check_images(images, config):
    """Raise ValueError, naming what is wrong, unless `images` is a batch that a model of `config` can take."""
    expected = f"(B, {config.channels}, {config.image_size}, {config.image_size})"
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"images: a {type(images).__name__}; must be a tensor of shape {expected}")
    if images.ndim != 4 or images.shape[1:] != (config.channels, config.image_size, config.image_size):
        raise ValueError(f"images: shape {tuple(images.shape)}; this model needs {expected}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images: dtype {images.dtype}; must be uint8 in [0, 255] or float in [0, 1]")
    if images.numel() and not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images: values from {low:.4g} to {high:.4g}; float images must lie in [0, 1] without NaN "
                         "(the model normalizes by itself)")


def build_model(config):
    """A fresh STNClassifier for `config`, on its device, initialized from `config.seed`.

    The global random state is left as it was. The transformer starts at the exact identity.
    """
    device = config.torch_device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = STNClassifier(config)
    # channels last: with three input channels the convolutions run several times faster so
    return model.to(device, memory_format=torch.channels_last)
