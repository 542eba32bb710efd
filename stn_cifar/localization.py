"""Localization networks: from a normalized image to the transformer's parameters.

Each is built by a row of LOCALIZATIONS, for pictures of `size` pixels a side, and maps
(B, channels, size, size) to (B, outputs). SpatialTransformer starts them at the identity.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .classifier import feature_size, light_features
from .p4 import split_turns, turned_copies


class TutorialLocalization(nn.Sequential):
    """The PyTorch tutorial's: two convolutions, two fully connected layers."""

    def __init__(self, channels, size, outputs):
        features = nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        regressor = nn.Sequential(
            nn.Linear(feature_size(features, channels, size), 32),  # of 32 x 32: 10 x 4 x 4
            nn.ReLU(),
            nn.Linear(32, outputs),
        )
        super().__init__(OrderedDict(features=features, regressor=regressor))


class CompactLocalization(nn.Sequential):
    """Two convolutions on the picture at half its size, one fully connected layer.

    Without normalization: its statistics lag behind the weights, and a transformer that predicts
    otherwise in evaluation than in training misleads its classifier.
    """

    def __init__(self, channels, size, outputs):
        features = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(channels, 12, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 16, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        regressor = nn.Linear(feature_size(features, channels, size), outputs)
        super().__init__(OrderedDict(features=features, regressor=regressor))


def light_localization(channels, size, outputs, width):
    """`light_features` and one fully connected layer on their maps."""
    features = nn.Sequential(*light_features(channels, width), nn.Flatten())
    regressor = nn.Linear(feature_size(features, channels, size), outputs)
    return nn.Sequential(OrderedDict(features=features, regressor=regressor))


class P4Localization(nn.Module):
    """A p4 group convolutional network that predicts logits over bins of the angle.

    For a picture turned counter-clockwise by 90 degrees it predicts the same logits, moved back by
    a quarter of the bins. mod90: the bins span 90 degrees, so the logits stay as they are.
    """

    def __init__(self, channels, size, outputs, width, mod90=False):
        super().__init__()
        self.mod90 = mod90
        maps = light_features(channels, width, p4=True)
        self.features = nn.Sequential(maps, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        inputs = feature_size(self.features, channels, size, p4=True)
        self.regressor = (nn.Linear(inputs, outputs) if mod90
                          else nn.Linear(4 * inputs, outputs // 4))

    def forward(self, images):
        pooled = self.features(images)
        if self.mod90:
            return self.regressor(split_turns(pooled).amax(dim=1))
        # quarter r of the bins: how upright the picture would be, were it turned by r quarters
        return self.regressor(turned_copies(pooled)).flatten(1)

    def initialize_output(self, logits):
        """Predict `logits` (outputs,) always; without mod90 their first quarter, 4 times."""
        nn.init.zeros_(self.regressor.weight)
        with torch.no_grad():
            self.regressor.bias.copy_(logits[:self.regressor.out_features])


@dataclass(frozen=True)
class Localization:
    """One row: how a network is built, and what it needs."""

    build: Callable  # (channels, size, outputs, width) -> nn.Module
    scalable: bool = True  # has a width
    angle_span: float | None = None  # radians its bins cover: it predicts bins of the angle only
    needs_invariance: bool = False  # of the classifier, to the turns that it cannot tell apart


LOCALIZATIONS = {
    "tutorial": Localization(lambda c, size, n, width: TutorialLocalization(c, size, n), False),
    "compact": Localization(lambda c, size, n, width: CompactLocalization(c, size, n), False),
    "light": Localization(light_localization),
    "p4": Localization(P4Localization, angle_span=2 * math.pi),
    "p4_mod90": Localization(lambda *args: P4Localization(*args, mod90=True),
                             angle_span=math.pi / 2, needs_invariance=True),
}
