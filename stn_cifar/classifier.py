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
    """Length of `features`' flat output for one picture, p4: for each of its four turns.

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


def convolution(inputs, outputs, halve=False, p4=False, first=False):
    """A 3x3 convolution that keeps the size, or halves it by max pooling, and batch normalization.

    Normalization makes a bias idle, so there is none; it comes after the pooling, where it has a
    quarter to do. p4: a group convolution, `inputs` and `outputs` channels for each quarter turn;
    first: of a picture, which has no turns yet.
    """
    layer = (P4Conv2d(inputs, outputs, 3, first, padding=1) if p4
             else nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    pool = [nn.MaxPool2d(2)] if halve else []
    return nn.Sequential(layer, *pool, (P4BatchNorm2d if p4 else nn.BatchNorm2d)(outputs))


class Residual(nn.Module):
    """x + f(x), for an f that keeps the shape (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def separable(inputs, outputs, kernel=3, halve=False):
    """A convolution in two: of each channel by itself, then 1x1 across channels; each normalized.

    With a fraction of a full one's parameters (Chollet 2016, arXiv 1610.02357). halve: by max
    pooling.
    """
    pool = [nn.MaxPool2d(2)] if halve else []
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs), nn.SiLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False), *pool, nn.BatchNorm2d(outputs))


class SeparableClassifier(nn.Sequential):
    """Residual depthwise-separable blocks, at the size of the picture, a half and a quarter."""

    STAGES = ((24, 1, 3), (48, 3, 5), (77, 2, 5))  # channels, blocks, side of their filters

    def __init__(self, channels, size, num_classes, width):
        layers, before = [], None
        for count, blocks, kernel in self.STAGES:
            now = max(1, round(width * count))
            layers += [separable(before, now, halve=True) if before else convolution(channels, now),
                       nn.SiLU()]
            for _ in range(blocks):
                layers += [Residual(separable(now, now, kernel)), nn.SiLU()]
            before = now
        features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = nn.Linear(feature_size(features, channels, size), num_classes)
        super().__init__(OrderedDict(features=features, head=head))


class StrongClassifier(nn.Module):
    """After airbench96 (Jordan 2024, arXiv 2404.00498), without its whitening.

    Three blocks of three convolutions; each block's first halves the picture, the other two have a
    shortcut. p4: as a group convolutional network of as many channels, invariant to quarter turns.
    """

    LOGIT_SCALE = 1 / 9  # airbench's: keeps the first steps of a high learning rate tame

    def __init__(self, channels, size, num_classes, width, p4=False):
        super().__init__()
        self.p4, turns = p4, 4 if p4 else 1
        stem, *widths = (max(1, round(width * n / turns)) for n in (32, 128, 384, 512))
        layers = [convolution(channels, stem, p4=p4, first=True), nn.GELU()]
        for before, after in zip([stem, *widths], widths, strict=False):
            layers += [
                convolution(before, after, halve=True, p4=p4), nn.GELU(),
                Residual(convolution(after, after, p4=p4), nn.GELU(),
                         convolution(after, after, p4=p4)),
                nn.GELU(),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        inputs = feature_size(self.features, channels, size, p4)
        self.head = nn.Linear(inputs, num_classes, bias=False)

    def forward(self, images):
        pooled = self.features(images)
        pooled = split_turns(pooled).amax(dim=1) if self.p4 else pooled
        return self.LOGIT_SCALE * self.head(pooled)


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
    stem = (P4Conv2d(channels, a, 4, stride=2, padding=1, first=True) if p4
            else nn.Conv2d(channels, a, 4, stride=2, padding=1, bias=False))
    norm = P4BatchNorm2d if p4 else nn.BatchNorm2d
    return nn.Sequential(
        nn.Sequential(stem, norm(a), nn.ReLU()),
        nn.Sequential(residual(a), nn.ReLU()),
        nn.Sequential(convolution(a, b, halve=True, p4=p4), nn.ReLU(), residual(b), nn.ReLU()),
        nn.Sequential(convolution(b, c, halve=True, p4=p4), nn.ReLU(), residual(c), nn.ReLU()),
    )


class LightClassifier(nn.Module):
    """`light_features`, the largest value of each channel, one layer.

    p4: the largest is taken over the four quarter turns too, so the logits are invariant: they do
    not change when the picture is turned by 90 degrees.
    """

    def __init__(self, channels, size, num_classes, width, p4=False):
        super().__init__()
        self.p4 = p4
        self.features = light_features(channels, width, p4)
        pooled = nn.Sequential(self.features, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(feature_size(pooled, channels, size, p4), num_classes)

    def forward(self, images):
        maps = self.features(images).amax(dim=(2, 3))
        return self.head(split_turns(maps).amax(dim=1) if self.p4 else maps)


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
    "separable": Classifier(SeparableClassifier, "compact"),
    "strong": Classifier(StrongClassifier, "compact"),
    "strong_p4": Classifier(lambda *args: StrongClassifier(*args, p4=True), "light",
                            p4_invariant=True),
    "light": Classifier(LightClassifier, "light"),
    "p4": Classifier(lambda *args: LightClassifier(*args, p4=True), "light", p4_invariant=True),
}
