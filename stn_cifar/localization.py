"""Localization networks: from a normalized image to the transformer's parameters."""

import torch
from torch import nn

from .classifier import feature_size, light_features
from .quarter_turns import seen_from_each_turn, split_turns


class TutorialLocalization(nn.Module):
    """The PyTorch tutorial's localization network: two convolutions, two fully connected layers.

    (B, C, S, S) -> (B, num_params). A fresh network answers `identity` (num_params,) for every image.
    """

    def __init__(self, channels, size, identity):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.regressor = nn.Sequential(
            nn.Linear(feature_size(self.features, channels, size), 32),  # 32 x 32: 10 maps of 4 x 4, 160
            nn.ReLU(),
            nn.Linear(32, len(identity)),
        )
        start_at(self.regressor[-1], identity)

    def forward(self, images):
        return self.regressor(self.features(images))


class CompactLocalization(nn.Module):
    """Two convolutions on the picture at half its size, one fully connected layer: (B, C, S, S) -> (B, num_params).

    A fresh network answers `identity` (num_params,) for every image. Without normalization: its statistics lag behind
    the weights, and a transformer that answers otherwise in evaluation than in training misleads its classifier.
    """

    def __init__(self, channels, size, identity):
        super().__init__()
        self.features = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(channels, 12, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 16, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.regressor = nn.Linear(feature_size(self.features, channels, size), len(identity))  # 16 maps of 4 x 4
        start_at(self.regressor, identity)

    def forward(self, images):
        return self.regressor(self.features(images))


class LightLocalization(nn.Module):
    """`light_features` and one fully connected layer on their maps: (B, C, S, S) -> (B, len(start)).

    A fresh network answers `start` for every image. shared: the first layers, a Sequential that the classifier has too
    (Finnveden et al. 2020, arXiv 2004.11678); both tasks teach them.
    """

    def __init__(self, channels, size, start, width, shared=None):
        super().__init__()
        shared = shared or nn.Sequential()
        self.features = nn.Sequential(*shared, *light_features(channels, width)[len(shared):], nn.Flatten())
        self.regressor = nn.Linear(feature_size(self.features, channels, size), len(start))
        start_at(self.regressor, start)

    def forward(self, images):
        return self.regressor(self.features(images))


class QuarterTurnLocalization(nn.Module):
    """For rotation by cells: group convolutions over quarter turns, then one layer for all four of them.

    (B, C, S, S) -> logits (B, cells), cells a multiple of 4. For a picture turned counter-clockwise by 90 degrees it
    answers the same logits, moved back by a quarter of the cells. So a fresh one answers the first quarter of `start`
    (cells,) four times.
    """

    def __init__(self, channels, size, start, width, quarter=False):
        super().__init__()
        self.quarter = quarter  # the cells span 90 degrees, so all four turns are asked for the same
        maps = light_features(channels, width, turns=True)
        self.features = nn.Sequential(maps, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        first = start if quarter else start[:len(start) // 4]
        inputs = feature_size(self.features, channels, size) // (4 if quarter else 1)
        self.regressor = nn.Linear(inputs, len(first))
        start_at(self.regressor, first)

    def forward(self, images):
        if self.quarter:
            return self.regressor(split_turns(self.features(images)).amax(dim=1))
        # quarter r of the cells: how upright the picture would be, were it turned by r quarters
        return self.regressor(seen_from_each_turn(self.features(images))).flatten(1)


def start_at(layer, identity):
    """Let a fresh last layer answer `identity` (num_params,) whatever comes in: zero weights, and that as its bias."""
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(identity)
