"""The network of the experiment: normalize, transform, classify."""

from operator import index

import torch
from torch import nn

from . import transforms
from .classifier import CLASSIFIERS
from .config import Config, check_config
from .data import Data
from .distortions import DISTORTIONS
from .localization import LOCALIZATIONS
from .pose_bins import PoseBins
from .seeding import seeded
from .spatial_transformer import IdentityTransformer, SpatialTransformer

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class STNClassifier(nn.Module):
    """Images to logits: normalization, a spatial transformer, a classifier.

    Images are (B, C, H, W) of `input_shape` (C, H, W), uint8 in [0, 255] or floating point in
    [0, 1]; normalization happens in here and nowhere else: by CIFAR-10's means and deviations where
    there are three channels, else to [-2, 2]. `transformer`: a SpatialTransformer, or for none an
    IdentityTransformer; `classifier`: any module that makes logits (B, num_classes) of warped
    images. `config`: the Config it was built from, where there is one: `load_model` builds it anew
    by that, so it reads no other model's checkpoints (`load_state_dict` does). Lazy layers get
    their sizes here. ValueError names an argument of another kind.
    """

    def __init__(self, transformer, classifier, input_shape, num_classes, config=None):
        super().__init__()
        for name, part in (("transformer", transformer), ("classifier", classifier)):
            if not isinstance(part, nn.Module):
                raise ValueError(f"{name}: a {type(part).__name__}; must be an nn.Module")
        try:
            channels, _, _ = self.input_shape = tuple(map(index, input_shape))
            self.num_classes = index(num_classes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"input_shape: {input_shape!r}, num_classes: {num_classes!r}; must be "
                             "three whole numbers (C, H, W), and one") from error
        self.transformer, self.classifier, self.config = transformer, classifier, config
        self.by_hand = config is None  # `fit` gives it its config
        coloured = channels == 3
        mean, std = (CIFAR10_MEAN, CIFAR10_STD) if coloured else ((0.5,), (0.25,))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        if any(map(nn.parameter.is_lazy, self.parameters())):
            with torch.no_grad():
                self.eval()(self.mean.new_zeros(1, *self.input_shape))
            self.train()

    @property
    def device(self):
        """Where the model is."""
        return self.mean.device

    def forward(self, images, true_params=None, teacher_forcing=None, return_alignment=False):
        """Logits (B, num_classes) of `images`; with return_alignment, (logits, Alignment).

        true_params, teacher_forcing: as SpatialTransformer.forward has them. Images of another
        shape or type raise ValueError, in evaluation mode those of other values too.
        """
        self._check(images)
        alignment = self.transformer(self.normalize(images), true_params, teacher_forcing)
        logits = self.classifier(alignment.warped)
        if not isinstance(logits, torch.Tensor):
            raise ValueError(f"classifier: it gives a {type(logits).__name__}; must be logits (B, "
                             f"{self.num_classes}), a Tensor")
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"classifier: it gives logits {tuple(logits.shape)}; must be (B, "
                             f"{self.num_classes}), one for each class")
        return (logits, alignment) if return_alignment else logits

    def transform(self, images):
        """What the classifier sees of `images`: (warped images (B, C, H', W') in [0, 1], theta).

        Under padding_mode="zeros" what lies outside is the mean colour: zero after normalization.
        """
        self._check(images)
        alignment = self.transformer(self.normalize(images))
        return (alignment.warped * self.std + self.mean).clamp(0, 1), alignment.theta

    def normalize(self, images):
        """uint8 [0, 255] or float [0, 1] to zero mean and unit variance per channel."""
        scale = 255 if images.dtype == torch.uint8 else 1
        # one multiply-add: x / (scale std) - mean / std
        return torch.addcmul(-self.mean / self.std, images.to(self.mean.dtype),
                             1 / (scale * self.std))

    def _check(self, images):
        expected = "(B, {}, {}, {})".format(*self.input_shape)
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(f"images: shape {tuple(images.shape)}; this model needs {expected}")
        if images.dtype == torch.uint8:
            return
        if not images.is_floating_point():
            raise ValueError(f"images: dtype {images.dtype}; must be uint8 in [0, 255] or floating "
                             "point in [0, 1]")
        # values: not while training, as that makes a GPU wait and `fit` has checked the data; not
        # while exporting or compiling, where there are none
        if self.training or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if images.numel() and not (images.isfinite().all() and images.min() >= 0
                                   and images.max() <= 1):
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"images: values from {low:.4g} to {high:.4g}; floating point images "
                             "must lie in [0, 1], without NaN (the model normalizes by itself)")


def build_model(config: Config, data: Data | None = None) -> STNClassifier:
    """A fresh STNClassifier for `config`, on its device, initialized from `config.seed`.

    data: a Data whose images and classes it is for; None: CIFAR-10's. The global random state is
    left as it was. The transformer starts at the exact identity.
    """
    check_config(config)
    if not isinstance(data, Data | None):
        raise ValueError(f"data: a {type(data).__name__}; must be a Data(train=Split(...), ...)")
    device = config.torch_device()
    channels, size, num_classes = 3, 32, 10  # CIFAR-10's
    if data is not None:
        channels, size, num_classes = data.channels, data.size, len(data.classes)
    if config.distortion is not None and not (data and data.posed):
        size = DISTORTIONS[config.distortion].canvas_size(size)
    with seeded(config.seed, device):
        model = assemble(config, (channels, size, size), num_classes)
    return place(model, device)


def assemble(config, input_shape, num_classes):
    """The STNClassifier of `config` for images of `input_shape` (C, S, S), randomly initialized."""
    channels, size, _ = input_shape
    # the classifier first: so a seed gives it the same start with any transformer, and without one
    row = CLASSIFIERS[config.model]
    classifier = row.build(channels, config.output_size or size, num_classes, config.width)
    if not config.stn:
        transformer = IdentityTransformer(config.transform, config.output_size,
                                          config.padding_mode, config.supersample)
        return STNClassifier(transformer, classifier, input_shape, num_classes, config)
    localization = LOCALIZATIONS[config.localization_row]
    outputs, bins = transforms.FAMILIES[config.transform].num_params, None
    if config.pose_bins:
        span = {"angle_span": localization.angle_span} if localization.angle_span else {}
        bins = PoseBins(config.transform, config.pose_bins, **span)
        outputs = bins.num_logits
    network = localization.build(channels, size, outputs, config.localization_width)
    transformer = SpatialTransformer(network, config.transform, config.output_size,
                                     config.padding_mode, supersample=config.supersample,
                                     iterations=config.iterations, pose_bins=bins)
    return STNClassifier(transformer, classifier, input_shape, num_classes, config)


def check_model(model):
    """ValueError unless `model` is an STNClassifier."""
    if not isinstance(model, STNClassifier):
        raise ValueError(f"model: a {type(model).__name__}; must be an STNClassifier: "
                         "build_model(config, data), or of a network of your own "
                         "STNClassifier(transformer, network, input_shape, num_classes)")


def place(model, device):
    """`model` on `device`, channels last: convolutions of few channels are several times faster."""
    return model.to(device, memory_format=torch.channels_last)
