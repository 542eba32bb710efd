"""What figures share: the page, pictures in their true colours, outlines of what was sampled, a model's answers."""

import textwrap
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .diagnostics import evaluating

# Okabe and Ito's colours, told apart with any colour vision
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"
SKY, PURPLE = "#56B4E9", "#CC79A7"
WIDTH = 8  # inches, at 100 dots per inch
LETTERS = dict(title=76, text=112, below=122)  # that fit on a line
FINE = 95  # points along each side of a region, besides its edges: lines bend smoothly; odd: one is in the middle


def page(height: float, title: str, look_for: str, below: list[str] | None = None, **layout) -> Figure:
    """A Figure `height` inches high, apart from pyplot's state (so a notebook draws it once).

    `title` stands above what to look for; `below` the pictures, texts that make the page higher as they need.
    """
    lines = [line for text in below or [] for line in textwrap.wrap(text, LETTERS["below"], subsequent_indent="    ")]
    bottom = 0.18 * len(lines) + (0.12 if lines else 0)
    height += bottom
    fig = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    smaller = min(1, LETTERS["title"] / max(1, len(title))), min(1, LETTERS["text"] / max(1, len(look_for)))
    fig.text(0.01, 1 - 0.15 / height, title, fontsize=12 * smaller[0], fontweight="bold", va="center")
    fig.text(0.01, 1 - 0.42 / height, look_for, fontsize=9.5 * smaller[1], color=GREY, va="center")
    for number, line in enumerate(lines):
        fig.text(0.01, (bottom - 0.15 - 0.18 * number) / height, line, fontsize=9, va="center")
    # the rest is the picture's
    fig.get_layout_engine().set(rect=(0, bottom / height, 1, 1 - (0.62 + bottom) / height), **layout)
    return fig


def show(ax, image: Tensor) -> None:
    """One image (C, H, W), uint8 or float in [0, 1], without axes."""
    pixels = image.detach().cpu().permute(1, 2, 0)
    pixels = pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 1)
    ax.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255 if pixels.dtype == torch.uint8 else 1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def short(name: str, length: int = 10) -> str:
    """A class name that fits above a small picture."""
    return name if len(name) <= length else name[:length - 1] + "…"


def mark(ax, name: str, good: bool) -> None:
    """A guess above its picture: right and wrong told apart by sign and weight, not by colour alone."""
    ax.set_title(f"{'✓' if good else '✗'} {name}", fontsize=8 if good else 7.3, pad=2, color=BLUE if good else RED,
                 fontweight="normal" if good else "bold")


class Answers(NamedTuple):
    """What a model makes of B images, on the CPU."""

    seen: Tensor  # (B, C, S', S') in [0, 1]: what the classifier sees
    theta: Tensor
    region: Tensor  # (B, n, n, 2): the sampled region, as `region` gives it
    probabilities: Tensor  # (B, classes)


def ask(model, images: Tensor) -> Answers:
    """The model's answers for `images` (B, C, S, S), in evaluation mode; the training mode is restored."""
    images = images.to(model.mean.device)
    with evaluating(model):
        seen, theta = model.transform(images)
        probabilities = model(images).float().softmax(1)
    return Answers(seen.cpu(), theta.cpu(), region(model.family, theta.cpu()), probabilities.cpu())


def region(family, theta: Tensor) -> Tensor:
    """Points (B, n, n, 2) of the region that theta samples, row by row and edge to edge; input coordinates."""
    points = family.grid_of(theta, FINE)  # at the centres of fine pixels: half a step inside the edges
    for dim in (1, 2):
        first, second = points.narrow(dim, 0, 1), points.narrow(dim, 1, 1)
        last, before = points.narrow(dim, FINE - 1, 1), points.narrow(dim, FINE - 2, 1)
        points = torch.cat([1.5 * first - 0.5 * second, points, 1.5 * last - 0.5 * before], dim)
    return points


def draw_region(ax, points: Tensor, size: int, lines: int = 2, top: bool = False) -> None:
    """A sampled region (n, n, 2) on a picture of `size` pixels: its outline, and `lines` lines each way.

    top: give it a handle, as drawing programs do, on its upper side.
    """
    picks = torch.linspace(0, len(points) - 1, lines).round().long().tolist()
    curves = [(line, 1.8 if k in (picks[0], picks[-1]) else 0.6) for k in picks for line in (points[k], points[:, k])]
    for line, width in curves + [(handle(points), 1.8)] * top:
        x, y = to_pixels(line, size).unbind(1)
        dot = dict(marker="o", markersize=5, markevery=[1]) if len(line) == 2 else {}
        ax.plot(x, y, color="white", linewidth=width + 0.7, alpha=0.6, markeredgewidth=1.7, **dot)  # seen on any ground
        ax.plot(x, y, color=RED, linewidth=width, **dot)
    ax.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def handle(points: Tensor) -> Tensor:
    """From the middle of the upper edge of a region (n, n, 2) outwards, an eighth of its height: (2, 2)."""
    upper, lower = points[[0, -1], len(points) // 2]
    return torch.stack([upper, upper + (upper - lower) / 8])


def to_pixels(points: Tensor, size: int) -> Tensor:
    """Input coordinates, [-1, 1] from edge to edge, as the pixel coordinates that imshow has."""
    return ((points + 1) * size - 1) / 2
