"""Augmentation of the training images: flips, shifts and cut-outs, drawn for a whole epoch, applied batch by batch.

They are drawn on the CPU from (seed, epoch), so a run has the same ones on every device and after every resume.
"""

import torch
from torch import Tensor

from .config import Config
from .distortions import OUTSIDE

FLIP, SHIFT, HOLE = 0, slice(1, 3), slice(3, 5)  # columns of what is drawn


def draw(config: Config, images: Tensor, epoch: int, generator: torch.Generator) -> Tensor | None:
    """What is done to each of `images` (N, C, S, S) in `epoch` (from 1): int64 (N, 5) on the CPU; None if nothing.

    The columns: mirrored left to right or not, the shift in pixels (y, x; positive: the picture moves up, left, and is
    mirrored after that), the cut-out's upper left corner (y, x).
    Flips alternate (Jordan 2024, arXiv 2404.00498): chance decides an image's first epoch, then every second epoch
    shows it mirrored. So two epochs show all images both ways, which independent flips do for half of them only.
    """
    if not (config.flip or config.shift or config.cutout):
        return None
    count, size = len(images), images.shape[-1]
    for name, value, most in (("shift", config.shift, size - 1), ("cutout", config.cutout, size)):
        if value > most:
            raise ValueError(f"{name}: {value} pixels, in pictures of {size}; must be <= {most}")
    drawn = torch.zeros(count, 5, dtype=torch.int64)
    if config.flip:
        first = torch.randint(2, (count,), generator=torch.Generator().manual_seed(config.seed))
        drawn[:, FLIP] = (first + epoch) % 2
    drawn[:, SHIFT] = torch.randint(-config.shift, config.shift + 1, (count, 2), generator=generator)
    drawn[:, HOLE] = torch.randint(size - config.cutout + 1, (count, 2), generator=generator)
    return drawn


def apply(images: Tensor, drawn: Tensor, cutout: int = 0) -> Tensor:
    """uint8 images (B, C, S, S) as `drawn` (B, 5), on their device, says; cutout: the hole's side, pixels.

    One gather does it all. What a shift uncovers is the picture mirrored at its outermost pixels; a hole has the mean
    colour.
    """
    size = images.shape[-1]
    pixels = torch.arange(size, device=images.device)
    columns = torch.where(drawn[:, FLIP, None] == 1, size - 1 - pixels, pixels)  # (B, S)
    rows, columns = (size - 1 - (size - 1 - (places + shift[:, None]).abs()).abs()  # mirrored into [0, size)
                     for places, shift in zip((pixels, columns), drawn[:, SHIFT].unbind(1), strict=True))
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    images = images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
    if cutout:
        inside = pixels - drawn[:, HOLE, None]  # (B, 2, S): how far from the hole's corner
        inside = (inside >= 0) & (inside < cutout)
        hole = inside[:, 0, :, None] & inside[:, 1, None, :]  # (B, S, S)
        mean = OUTSIDE if images.shape[1] == len(OUTSIDE) else (128,) * images.shape[1]  # as around a distortion's disc
        for channel, colour in zip(images.unbind(1), mean, strict=True):
            channel.masked_fill_(hole, colour)
    return images
