"""CNN classifiers: from a normalized, warped image to logits.

Each is built by a row of CLASSIFIERS, for pictures of `size` pixels a side, and maps
(B, channels, size, size) to (B, num_classes).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .p4 import P4BatchNorm2d, P4Conv2d, split_turns


def feature_size(features, channels, size, p4=False):
    """Length of `features`' output for one picture, or its channels; p4: for each quarter turn.

    ValueError where the picture is too small, or a p4 network would not be equivariant on it.
    """
    if p4 and size % 8:
        raise ValueError(f"image size: {size} pixels with a p4 network; must be a multiple of 8, "
                         "or its poolings fall out otherwise on a turned picture")
    normalizations = [layer for layer in features.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in normalizations:
        layer.eval()  # no statistics of zeros
    try:
        with torch.no_grad():  # dropout stays on: what it samples is part of what a seed means
            length = features(torch.zeros(1, channels, size, size)).shape[1]
            return length // 4 if p4 else length
    except RuntimeError as error:
        raise ValueError(f"image size: {size} x {size} pixels are too few for the network's "
                         "convolutions and poolings; use larger images (CIFAR-10 has 32 x 32), or "
                         "a larger output_size") from error
    finally:
        for layer in normalizations:
            layer.train()


class TutorialClassifier(nn.Sequential):
    """The PyTorch tutorial's: two convolutions with channel dropout, two fully connected layers."""

    def __init__(self, channels, size, num_classes):
        features = nn.Sequential(
            nn.Conv2d(channels, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        head = nn.Sequential(
            nn.Linear(feature_size(features, channels, size), 50),  # of 32 x 32: 20 x 5 x 5
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, num_classes),
        )
        super().__init__(OrderedDict(features=features, head=head))


def convolution(inputs, outputs, halve=False, p4=False, first=False, kernel=3, stride=1,
                depthwise=False):
    """A convolution that keeps the size, or halves it by max pooling, and batch normalization.

    Normalization makes a bias idle, so there is none; it comes after the pooling, where it has a
    quarter to do. p4: a group convolution, `inputs` and `outputs` channels for each quarter turn;
    first: of a picture, which has no turns yet. depthwise: of each channel by itself.
    """
    padding = (kernel - 1) // 2
    if p4:
        layer = P4Conv2d(inputs, outputs, kernel, first, stride, padding, depthwise)
    else:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding,
                          groups=inputs if depthwise else 1, bias=False)
    pool = [nn.MaxPool2d(2)] if halve else []
    return nn.Sequential(layer, *pool, (P4BatchNorm2d if p4 else nn.BatchNorm2d)(outputs))


class Residual(nn.Module):
    """x + f(x), for an f that keeps the shape (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def separable(inputs, outputs, kernel=3, halve=False, p4=False):
    """A convolution in two: of each channel by itself, then 1x1 across channels; each normalized.

    With a fraction of a full one's parameters (Chollet 2016, arXiv 1610.02357).
    """
    return nn.Sequential(*convolution(inputs, inputs, p4=p4, kernel=kernel, depthwise=True),
                         nn.SiLU(), *convolution(inputs, outputs, halve, p4, kernel=1))


class PooledClassifier(nn.Module):
    """Convolutional features, one value of each channel, one fully connected layer.

    pool: maps (B, C, H, W) -> (B, C). p4: the features are a group convolutional network's; the
    largest value is taken over the four quarter turns too, so the logits are invariant: they do
    not change when the picture is turned by 90 degrees.
    """

    def __init__(self, features, pool, channels, size, num_classes, p4=False, bias=True, scale=1):
        super().__init__()
        self.features, self.pool, self.p4, self.scale = features, pool, p4, scale
        self.head = nn.Linear(feature_size(features, channels, size, p4), num_classes, bias=bias)

    def forward(self, images):
        pooled = self.pool(self.features(images))
        pooled = split_turns(pooled).amax(dim=1) if self.p4 else pooled
        return self.scale * self.head(pooled)


def separable_features(stem, stages, p4=False):
    """`stem`, then residual depthwise-separable blocks; each stage after the first halves the size.

    stages: (channels, blocks, their kernel) of each, the first one's channels being the stem's.
    """
    layers, before = [stem, nn.SiLU()], None
    for count, blocks, kernel in stages:
        if before:
            layers += [separable(before, count, halve=True, p4=p4), nn.SiLU()]
        for _ in range(blocks):
            layers += [Residual(separable(count, count, kernel, p4=p4)), nn.SiLU()]
        before = count
    return nn.Sequential(*layers)


def separable_classifier(channels, size, num_classes, width):
    """Residual depthwise-separable blocks, at the size of the picture, a half and a quarter."""
    a, b, c = (max(1, round(width * n)) for n in (24, 48, 77))
    features = separable_features(convolution(channels, a), ((a, 1, 3), (b, 3, 5), (c, 2, 5)))
    return PooledClassifier(features, spatial_mean, channels, size, num_classes)


def separable_p4_classifier(channels, size, num_classes, width):
    """The same kind of blocks in a group convolutional network, at the sizes of `light_features`.

    The mean of each channel over space, then the largest over the four quarter turns.
    """
    a, b, c = (max(1, round(width * n / 4)) for n in (32, 64, 128))
    stem = convolution(channels, a, p4=True, first=True, kernel=4, stride=2)
    features = separable_features(stem, ((a, 2, 3), (b, 2, 3), (c, 1, 3)), p4=True)
    return PooledClassifier(features, spatial_mean, channels, size, num_classes, p4=True)


def spatial_mean(maps):
    """Mean of each channel."""
    return maps.mean(dim=(2, 3))


def strong_classifier(channels, size, num_classes, width, p4=False):
    """After airbench96 (Jordan 2024, arXiv 2404.00498), without its whitening.

    Three blocks of three convolutions; each block's first halves the picture, the other two have a
    shortcut. p4: as a group convolutional network of as many channels.
    """
    stem, *widths = (max(1, round(width * n / (4 if p4 else 1))) for n in (32, 128, 384, 512))
    layers = [convolution(channels, stem, p4=p4, first=True), nn.GELU()]
    for before, after in zip([stem, *widths], widths, strict=False):
        layers += [convolution(before, after, halve=True, p4=p4), nn.GELU(),
                   Residual(convolution(after, after, p4=p4), nn.GELU(),
                            convolution(after, after, p4=p4)), nn.GELU()]
    largest = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    # scale: airbench's, keeps the first steps of a high learning rate tame
    return PooledClassifier(nn.Sequential(*layers), largest, channels, size, num_classes, p4,
                            bias=False, scale=1 / 9)


def light_features(channels, width, p4=False):
    """Stem and three residual blocks at a half, a quarter and an eighth of the picture.

    Made for many runs on few cores: by halving the picture at once it does a quarter of the work.
    p4: as a group convolutional network of as many channels, with a quarter of the parameters.
    """
    a, b, c = (max(1, round(width * n / (4 if p4 else 1))) for n in (16, 32, 64))

    def residual(count):
        layers = convolution(count, count, p4=p4), nn.ReLU(), convolution(count, count, p4=p4)
        return Residual(*layers)

    # a kernel of 4 with a stride of 2 lies evenly on the picture: a turned one gives turned maps
    stem = convolution(channels, a, p4=p4, first=True, kernel=4, stride=2)
    return nn.Sequential(
        nn.Sequential(*stem, nn.ReLU()),
        nn.Sequential(residual(a), nn.ReLU()),
        nn.Sequential(convolution(a, b, halve=True, p4=p4), nn.ReLU(), residual(b), nn.ReLU()),
        nn.Sequential(convolution(b, c, halve=True, p4=p4), nn.ReLU(), residual(c), nn.ReLU()),
    )


def light_classifier(channels, size, num_classes, width, p4=False):
    """`light_features`, and the largest value of each channel."""
    return PooledClassifier(light_features(channels, width, p4), spatial_max, channels, size,
                            num_classes, p4)


def spatial_max(maps):
    """Largest value of each channel; where several are, they share its gradient."""
    return maps.amax(dim=(2, 3))


@dataclass(frozen=True)
class Classifier:
    """One row: how a network is built, and what goes with it."""

    build: Callable  # (channels, size, num_classes, width) -> nn.Module
    localization: str  # the row of localization.LOCALIZATIONS that goes with it
    scalable: bool = True  # has a width
    p4_invariant: bool = False  # a picture turned by 90 degrees gives the same logits


CLASSIFIERS = {
    "tutorial": Classifier(lambda c, size, n, width: TutorialClassifier(c, size, n), "tutorial",
                           scalable=False),
    "separable": Classifier(separable_classifier, "compact"),
    "separable_p4": Classifier(separable_p4_classifier, "light", p4_invariant=True),
    "strong": Classifier(strong_classifier, "compact"),
    "strong_p4": Classifier(lambda *args: strong_classifier(*args, p4=True), "light",
                            p4_invariant=True),
    "light": Classifier(light_classifier, "light"),
    "p4": Classifier(lambda *args: light_classifier(*args, p4=True), "light", p4_invariant=True),
}
