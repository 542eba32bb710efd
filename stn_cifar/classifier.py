"""CNN classifiers: from a normalized, warped image to logits."""

import torch
from torch import nn


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


def convolution(inputs, outputs, halve=False):
    """A 3x3 convolution that keeps the size, or halves it by max pooling, and batch normalization.

    The normalization makes a bias idle, so there is none; it comes after the pooling, where it has a quarter to do.
    """
    pool = [nn.MaxPool2d(2)] if halve else []
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *pool, nn.BatchNorm2d(outputs))


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
