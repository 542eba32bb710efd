"""CNN classifiers: from a normalized, warped image to logits."""

import torch
from torch import nn

from .quarter_turns import QuarterTurnConv2d, QuarterTurnNorm2d, split_turns


def feature_size(features, channels, size):
    """Length of `features`' flat output for one (channels, size, size) image; ValueError where size is too small."""
    normalizations = [layer for layer in features.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in normalizations:
        layer.eval()  # no statistics of zeros. Dropout stays on: what it draws here is part of what a seed means
    try:
        with torch.no_grad():
            return features(torch.zeros(1, channels, size, size)).shape[1]
    except RuntimeError as error:
        raise ValueError(f"image_size or output_size: {size} pixels are too few for the network's convolutions and "
                         "poolings; use a larger picture (32 is CIFAR-10's)") from error
    finally:
        for layer in normalizations:
            layer.train()


class TutorialClassifier(nn.Module):
    """The PyTorch tutorial's classifier: two convolutions with channel dropout, two fully connected layers.

    (B, C, S, S) -> logits (B, num_classes).
    """

    def __init__(self, channels, size, num_classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(feature_size(self.features, channels, size), 50),  # 32 x 32: 20 maps of 5 x 5, 500
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, num_classes),
        )

    def forward(self, images):
        return self.head(self.features(images))


def convolution(inputs, outputs, halve=False, turns=False):
    """A 3x3 convolution that keeps the size, or halves it by max pooling, and batch normalization.

    The normalization makes a bias idle, so there is none; it comes after the pooling, where it has a quarter to do.
    turns: weights shared over the four quarter turns, `inputs` and `outputs` channels for each.
    """
    layer = QuarterTurnConv2d if turns else nn.Conv2d
    pool = [nn.MaxPool2d(2)] if halve else []
    norm = QuarterTurnNorm2d if turns else nn.BatchNorm2d
    return nn.Sequential(layer(inputs, outputs, 3, padding=1, bias=False), *pool, norm(outputs))


class Residual(nn.Module):
    """x + f(x), for an f that keeps the shape (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class CompactClassifier(nn.Module):
    """A small residual network, its parameters spent on few channels at high resolution: (B, C, S, S) -> logits."""

    def __init__(self, channels, size, num_classes, width):
        super().__init__()
        a, b, c = (max(1, round(width * n)) for n in (16, 24, 36))
        self.features = nn.Sequential(
            convolution(channels, a), nn.ReLU(),
            convolution(a, b, halve=True), nn.ReLU(),
            Residual(convolution(b, b), nn.ReLU(), convolution(b, b)), nn.ReLU(),
            convolution(b, c, halve=True), nn.ReLU(),
            Residual(convolution(c, c)), nn.ReLU(),
        )  # 32 x 32: c maps of 8 x 8
        feature_size(self.features, channels, size)  # tells now if the picture is too small for the poolings
        self.head = nn.Linear(2 * c, num_classes)

    def forward(self, images):
        maps = self.features(images)
        return self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))


class StrongClassifier(nn.Module):
    """After airbench96 (Jordan 2024, arXiv 2404.00498), without its whitening: (B, C, S, S) -> (B, num_classes).

    Three blocks of three convolutions; each block's first halves the picture, the other two have a shortcut.
    """

    SCALE = 1 / 9  # of the logits, airbench's: keeps the first steps of a high learning rate tame

    def __init__(self, channels, size, num_classes, width):
        super().__init__()
        stem, *widths = (max(1, round(width * n)) for n in (32, 128, 384, 512))
        layers = [convolution(channels, stem), nn.GELU()]
        for before, after in zip([stem, *widths], widths, strict=False):
            layers += [
                convolution(before, after, halve=True), nn.GELU(),
                Residual(convolution(after, after), nn.GELU(), convolution(after, after)), nn.GELU(),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(feature_size(self.features, channels, size), num_classes, bias=False)

    def forward(self, images):
        return self.SCALE * self.head(self.features(images))


LIGHT = (16, 32, 64)  # channels of the light networks' blocks, for a width of 1; a quarter of it for each quarter turn


def light_features(channels, width, turns=False):
    """Stem and three residual blocks at a half, a quarter and an eighth of the picture: (B, C, S, S) -> maps.

    Made for many runs on few cores: by halving the picture at once it does a quarter of the work. `turns`: as a group
    convolutional network over quarter turns, of as many channels, which are then a quarter of the parameters.
    """
    a, b, c = (max(1, round(width * n / (4 if turns else 1))) for n in LIGHT)

    def residual(count):
        return Residual(convolution(count, count, turns=turns), nn.ReLU(), convolution(count, count, turns=turns))

    # a kernel of 4 with a stride of 2 lies evenly on the picture, so that a turned picture gives turned maps
    stem = (QuarterTurnConv2d(channels, a, 4, stride=2, padding=1, bias=False, first=True) if turns
            else nn.Conv2d(channels, a, 4, stride=2, padding=1, bias=False))
    norm = QuarterTurnNorm2d if turns else nn.BatchNorm2d
    return nn.Sequential(
        nn.Sequential(stem, norm(a), nn.ReLU()),
        nn.Sequential(residual(a), nn.ReLU()),
        nn.Sequential(convolution(a, b, halve=True, turns=turns), nn.ReLU(), residual(b), nn.ReLU()),
        nn.Sequential(convolution(b, c, halve=True, turns=turns), nn.ReLU(), residual(c), nn.ReLU()),
    )


class LightClassifier(nn.Module):
    """`light_features`, the largest value of each channel, one layer: (B, C, S, S) -> logits (B, num_classes).

    turns: the features are those of a group convolutional network, and the largest is taken over the four quarter
    turns too, so the logits do not change when the picture is turned by 90 degrees.
    """

    def __init__(self, channels, size, num_classes, width, turns=False):
        super().__init__()
        self.turns = turns
        self.features = light_features(channels, width, turns)
        pooled = nn.Sequential(self.features, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.num_features = feature_size(pooled, channels, size) // (4 if turns else 1)
        self.head = nn.Linear(self.num_features, num_classes)

    def pooled(self, images):
        """What the head reads, (B, num_features)."""
        maps = self.features(images).amax(dim=(2, 3))
        return split_turns(maps).amax(dim=1) if self.turns else maps

    def forward(self, images):
        return self.head(self.pooled(images))
