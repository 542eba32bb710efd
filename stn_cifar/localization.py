"""Localization networks: from a normalized image to the transformer's parameters."""

import torch
from torch import nn

from .classifier import feature_size


class TutorialLocalization(nn.Module):
    """The PyTorch tutorial's localization network: two convolutions, two fully connected layers.

    (B, C, S, S) -> (B, num_params). A fresh network answers `identity` (num_params,) for every image: its last
    layer has zero weights and `identity` as its bias.
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
        last = self.regressor[-1]
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(identity)

    def forward(self, images):
        return self.regressor(self.features(images))
