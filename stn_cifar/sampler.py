"""The sampler: a grid and an image make a warped image (Jaderberg et al. 2015, section 3.3)."""

import torch
import torch.nn.functional as F

PADDING_MODES = ("zeros", "border", "reflection")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def sample(images, grid, padding_mode="zeros", interpolation="bilinear", supersample=1):
    """Read `images` (B, C, H, W) at `grid` (B, k*H', k*W', 2): warped images (B, C, H', W').

    grid: input coordinates (x, y), [-1, 1] spanning the picture edge to edge (align_corners=False).
    padding_mode: what lies outside, one of PADDING_MODES. interpolation: one of INTERPOLATIONS.
    supersample: k samples per output pixel and axis, averaged: no aliasing where the map shrinks.

    The result has the images' dtype, half precision included; of whole numbers, the grid's.
    Coordinates must be float32 or finer (TypeError): a bfloat16 one near 1 is off by up to 1/16
    pixel at 32 pixels. So the sampler steps out of autocast, and works in the grid's precision.
    """
    if grid.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"grid: {grid.dtype} is too coarse for coordinates; must be float32 or "
                        "float64")
    with torch.autocast(grid.device.type, enabled=False):
        warped = F.grid_sample(images.to(grid.dtype), grid, mode=interpolation,
                               padding_mode=padding_mode, align_corners=False)
        warped = F.avg_pool2d(warped, supersample) if supersample > 1 else warped
    return warped.to(images.dtype) if images.is_floating_point() else warped
