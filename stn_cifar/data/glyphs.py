"""Glyphs: characters in random fonts and colours on textured backgrounds, each in a known pose.

They stand in for CIFAR-10 where there is no network, and show a transformer at work: each image
comes with the `theta` that was applied, so whether it was undone can be measured.
60,000 images of 3x32x32 take about 9 s on 2 CPU cores (n = 1).
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor

# Each has one way up, and none looks like another one turned (as 6 and 9, N and Z, M and W do).
CLASSES = ("A", "F", "G", "J", "K", "2", "3", "7", "?", "&")
# Upright fonts that matplotlib ships, so that every machine draws the same shapes.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif",
         "DejaVuSerif-Bold", "STIXGeneralBol", "cmb10", "cmss10")

GLYPH_RADIUS = 0.8  # half-widths: an upright glyph just fits a disc of this radius
MAX_ANGLE = 60.0  # degrees
MIN_SCALE, MAX_SCALE = 0.7, 1.0  # size of the posed glyph as a fraction of the upright one
MAX_SHIFT = 0.2  # half-widths; MAX_SCALE * GLYPH_RADIUS + MAX_SHIFT <= 1: nothing is cut off
CONTRAST = (0.45, 0.65)  # difference in luminance, on [0, 1], of glyph and background
TEXTURE = (0.025, 0.09)  # weight of the background's noise, on [0, 1]; smooth to busy
CHUNK = 2000  # images made at once; bounds memory, and is part of what a seed means


def make_glyphs(count: int, seed: int, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """(images, labels, poses) of `count` glyphs on the CPU; the same ones for the same seed.

    images: uint8 (count, 3, size, size). labels: int64 (count,), indices into CLASSES, each equally
    often (to within one), in random order. poses: float32 (count, 2, 3), the theta that was applied
    to the upright, centred glyph: image(p) = upright(theta p), so a transformer undoes it by the
    inverse. Uniform in angle, scale and shift. The global random state is left alone. Below 16
    pixels the thin fonts cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    atlas = draw_atlas(2 * size)
    labels = torch.arange(count) % len(CLASSES)
    labels = labels[torch.randperm(count, generator=generator)]
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    poses = torch.empty(count, 2, 3)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        n = len(labels[part])
        fonts = torch.randint(len(FONTS), (n,), generator=generator)
        poses[part] = _random_poses(n, generator)
        masks = _pose_masks(atlas[labels[part], fonts], poses[part], size)
        images[part] = _paint(masks, generator)
    return images, labels, poses


def draw_atlas(resolution: int) -> Tensor:
    """Every class in every font: float32 (classes, fonts, resolution, resolution), 1 is ink.

    A glyph's bounding box is centred, and its farthest point lies GLYPH_RADIUS from the centre, so
    fonts and classes come out equally large, and no turn pushes one out of the image.
    """
    with style.context("default"):  # the reader's plotting style must not change the data
        masks = [[_draw_glyph(char, font, resolution) for font in FONTS] for char in CLASSES]
    return torch.from_numpy(np.array(masks, dtype=np.float32) / 255)


def _draw_glyph(char: str, font: str, resolution: int) -> np.ndarray:
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    path = TextPath((0, 0), char, size=1000, prop=FontProperties(fname=file))
    outline = np.concatenate(path.to_polygons())
    centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
    radius = np.linalg.norm(outline - centre, axis=1).max()
    half = resolution / 2
    place = Affine2D().translate(*-centre).scale(GLYPH_RADIUS * half / radius).translate(half, half)
    figure = Figure(figsize=(1, 1), dpi=resolution)  # not pyplot: no backend, no global state
    canvas = FigureCanvasAgg(figure)
    figure.add_artist(PathPatch(path, transform=place, facecolor="black", linewidth=0, snap=False))
    canvas.draw()
    return 255 - np.asarray(canvas.buffer_rgba())[..., 0]


def _random_poses(n: int, generator: torch.Generator) -> Tensor:
    """theta (n, 2, 3), the inverse of: turn the upright glyph, scale it, then shift it."""
    angle = math.radians(MAX_ANGLE) * _uniform((n,), -1, 1, generator)
    scale = _uniform((n,), MIN_SCALE, MAX_SCALE, generator)
    shift = _uniform((n, 2, 1), -MAX_SHIFT, MAX_SHIFT, generator)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cos, -sin, sin, cos], dim=1).view(n, 2, 2)
    return torch.cat([matrix, -matrix @ shift], dim=2)


def _pose_masks(masks: Tensor, poses: Tensor, size: int) -> Tensor:
    """Upright masks (n, R, R) to posed ones (n, 1, size, size): sampled at 2 x 2 a pixel."""
    grid = F.affine_grid(poses, [len(poses), 1, 2 * size, 2 * size], align_corners=False)
    posed = F.grid_sample(masks[:, None], grid, mode="bilinear", padding_mode="zeros",
                          align_corners=False)
    return F.avg_pool2d(posed, 2)


def _paint(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Masks (n, 1, H, W) to images uint8 (n, 3, H, W). Nothing here knows the pose."""
    n, size = len(masks), masks.shape[-1]
    back = _uniform((n,), 0.1, 0.9, generator)
    gap = _uniform((n,), *CONTRAST, generator)
    ink = torch.where(back < 0.5, back + gap, back - gap)  # to the side that has room
    texture = torch.zeros(n, 3, size, size)
    for octave in range(4):  # 2, 4, 8, 16 patches across, each fainter: like a photo out of focus
        cells = 2 ** (octave + 1)
        noise = torch.randn(n, 3, cells, cells, generator=generator)
        noise += 1.5 * noise.mean(dim=1, keepdim=True)  # light varies more than colour does
        noise = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)
        texture += noise * 0.6**octave
    texture *= _uniform((n, 1, 1, 1), *TEXTURE, generator)
    background = _random_colors(back, generator) + texture
    glyph = _random_colors(ink, generator) + 0.3 * texture  # the ground shines through a little
    images = torch.lerp(background, glyph, masks)
    images += 0.015 * torch.randn(images.shape, generator=generator)  # grain, on both alike
    return images.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _random_colors(luminance: Tensor, generator: torch.Generator) -> Tensor:
    """Colours (n, 3, 1, 1) of random hue and saturation with the given luminance (n,)."""
    n = len(luminance)
    hue = _uniform((n, 1), 0, 1, generator) + torch.tensor([0, 1 / 3, 2 / 3])
    tint = torch.cos(2 * math.pi * hue) * _uniform((n, 1), 0.1, 0.4, generator)
    tint -= tint @ torch.tensor([[0.299], [0.587], [0.114]])  # luminance as in ITU-R BT.601
    return (luminance[:, None] + tint).clamp(0, 1).view(n, 3, 1, 1)


def _uniform(shape: tuple, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)
