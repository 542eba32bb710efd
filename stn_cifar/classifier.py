"""CNN classifiers: from a normalized, warped image to logits."""

import torch
from torch import nn


def feature_size(features, channels, size):
    """Length of `features`' flat output for one (channels, size, size) image; ValueError where size is too small."""
    try:
        with torch.no_grad():
            return features(torch.zeros(1, channels, size, size)).shape[1]
    except RuntimeError as error:
        raise ValueError(f"image_size or output_size: {size} pixels are too few for the network's convolutions and "
                         "poolings; use a larger picture (32 is CIFAR-10's)") from error


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
