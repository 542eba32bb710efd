"""Augmentation of training images: flips, shifts, cutout; sampled by epoch, applied by batch.

Sampled on the CPU from (seed, epoch), so a run has the same on every device and after every resume.
"""

import torch
from torch import Tensor

from ..distortions import outside_colour

FLIP, SHIFT, HOLE = 0, slice(1, 3), slice(3, 5)  # columns of the parameters


def sample_params(images: Tensor, epoch: int, seed: int, generator: torch.Generator, *,
                  flip: bool = False, shift: int = 0, cutout: int = 0,
                  canvas: int | None = None) -> Tensor | None:
    """What is done to each of `images` (N, C, S, S) in `epoch` (from 1): int64 (N, 5), or None.

    The columns: mirrored left to right or not; the shift in pixels (y, x; positive: the picture
    moves up, left, and is mirrored after that); the upper left corner of the hole (y, x).
    canvas: side of the pictures that get the hole, where they are distorted in between.
    Flips alternate (Jordan 2024, arXiv 2404.00498): `seed` decides an image's first epoch, then
    every second epoch shows it mirrored. So two epochs show all images both ways, which independent
    flips do for half of them only.
    """
    if not (flip or shift or cutout):
        return None
    count, size = len(images), images.shape[-1]
    canvas = canvas or size
    for name, value, most in (("shift", shift, size - 1), ("cutout", cutout, canvas)):
        if value > most:
            raise ValueError(f"{name}: {value} pixels, in images of {size}; must be <= {most}")
    params = torch.zeros(count, 5, dtype=torch.int64)
    if flip:
        first = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed))
        params[:, FLIP] = (first + epoch) % 2
    params[:, SHIFT] = torch.randint(-shift, shift + 1, (count, 2), generator=generator)
    params[:, HOLE] = torch.randint(canvas - cutout + 1, (count, 2), generator=generator)
    return params


def apply(images: Tensor, params: Tensor) -> Tensor:
    """uint8 `images` (B, C, S, S) mirrored and shifted by `params` (B, 5), on their device.

    One gather does it all. What a shift uncovers is the picture mirrored at its outermost pixels.
    """
    size = images.shape[-1]
    pixels = torch.arange(size, device=images.device)
    columns = torch.where(params[:, FLIP, None] == 1, size - 1 - pixels, pixels)  # (B, S)
    rows, columns = (size - 1 - (size - 1 - (places + shift[:, None]).abs()).abs()  # mirrored in
                     for places, shift in zip((pixels, columns), params[:, SHIFT].unbind(1),
                                              strict=True))
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def cut_out(images: Tensor, params: Tensor, cutout: int) -> Tensor:
    """`images` (B, C, S, S), uint8 or in [0, 1], with the holes of `params`.

    cutout: their side, pixels; they have the mean colour.
    Distorted pictures get theirs last: a hole that turns along with the picture tells, by its
    sides, how the picture was turned, and a pose-supervised transformer learns to read nothing
    else (study `rotation-strong`: at chance on pictures without a hole).
    """
    if not cutout:
        return images
    pixels = torch.arange(images.shape[-1], device=images.device)
    inside = pixels - params[:, HOLE, None]  # (B, 2, S): how far from the hole's corner
    inside = (inside >= 0) & (inside < cutout)
    hole = inside[:, :1, :, None] & inside[:, 1:, None, :]  # (B, 1, S, S)
    colour = outside_colour(images.shape[1], images.device)
    colour = colour if images.dtype == torch.uint8 else colour / 255
    return torch.where(hole, colour.to(images.dtype), images)
