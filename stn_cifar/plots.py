"""Figures: each function returns a matplotlib Figure, readable at 800 pixels width and without colour vision.

Titles say data set, preset, epoch and what to look for; images are drawn in their true colours.
"""

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from . import diagnostics, transforms
from .config import Config
from .data import Data, Split
from .sampler import sample

# Okabe and Ito's colours, told apart with any colour vision
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"
TUTORIAL_TEST = 0.57  # the original experiment this project began with
WIDTH = 8  # inches, at 100 dots per inch


def _figure(height: float, title: str, look_for: str, **layout) -> Figure:
    """A Figure apart from pyplot's state (so a notebook draws it once), its title above what to look for."""
    fig = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    fig.text(0.01, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="center")
    fig.text(0.01, 1 - 0.42 / height, look_for, fontsize=9.5, color=GREY, va="center")
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.62 / height), **layout)  # the rest is the picture's
    return fig


def _show(ax, image: Tensor) -> None:
    """One image (C, H, W), uint8 or float in [0, 1], without axes."""
    pixels = image.detach().cpu().permute(1, 2, 0)
    pixels = pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 1)
    ax.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255 if pixels.dtype == torch.uint8 else 1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def first_of_each_class(split: Split, num_classes: int, count: int) -> Tensor:
    """Indices (num_classes, count) of the first `count` images of each class: the same images every time."""
    labels = split.labels.cpu()
    return torch.stack([(labels == c).nonzero()[:count, 0] for c in range(num_classes)])


def title_of(config: Config, data: Data, epoch: int | None = None) -> str:
    """ "CIFAR-10 · tutorial (affine) · epoch 50": how every title of a run's figures begins."""
    kind = config.transform if config.stn else "no transformer"
    return f"{data.name} · {config.name} ({kind})" + ("" if epoch is None else f" · epoch {epoch}")


def samples(data: Data, count: int = 10) -> Figure:
    """The first `count` training images of each class, one row a class."""
    rows = first_of_each_class(data.train, len(data.classes), count)
    size = data.train.images.shape[-1]
    look_for = f"{len(data.classes)} classes; each picture is {size} x {size} pixels."
    fig = _figure(8.6, f"{data.name}: training images", look_for, w_pad=0.01, h_pad=0.01)
    axes = fig.subplots(*rows.shape, squeeze=False)
    for name, row, indices in zip(data.classes, axes, rows, strict=True):
        for ax, index in zip(row, indices, strict=True):
            _show(ax, data.train.images[index])
        row[0].set_ylabel(f" {name} ", rotation=0, ha="right", va="center", fontsize=9)
    return fig


@torch.no_grad()
def _seen_and_guessed(model, images: Tensor) -> tuple[Tensor, Tensor]:
    """(What the classifier sees of `images`, the classes it predicts), dropout off; the training mode is restored."""
    was_training = model.training
    model.eval()
    warped, _ = model.transform(images)
    predicted = model(images).argmax(1).cpu()
    model.train(was_training)
    return warped, predicted


def _mark(ax, name: str, good: bool) -> None:
    """A guess above its picture: right and wrong told apart by sign and weight, not by colour alone."""
    ax.set_title(f"{'✓' if good else '✗'} {name}", fontsize=8, pad=2, color=BLUE if good else RED,
                 fontweight="normal" if good else "bold")


def strip(model, data: Data, title: str, look_for: str = "") -> Figure:
    """One fixed test image of each class, in two rows: as it is, and as the classifier sees it, with its guess."""
    images = data.test.images[first_of_each_class(data.test, len(data.classes), 2)[:, 1]]
    warped, predicted = _seen_and_guessed(model, images)
    look_for = look_for or "Above: the test image. Below: what the classifier sees of it, and its guess."
    fig = _figure(2.75, title, look_for, w_pad=0.02, h_pad=0.01)
    axes = fig.subplots(2, len(images))
    for k, name in enumerate(data.classes):
        _show(axes[0, k], images[k])
        _show(axes[1, k], warped[k])
        axes[0, k].set_title(name, fontsize=8, pad=2)
        _mark(axes[1, k], data.classes[predicted[k]], predicted[k] == k)
    return fig


def pairs(model, data: Data, title: str, look_for: str = "", count: int = 4) -> Figure:
    """Fixed test images, one row a class: each original beside what the classifier sees of it.

    Above each transformed image stands the predicted class, with a check mark where it is right and a cross,
    the true class being the row's, where it is wrong.
    """
    rows = first_of_each_class(data.test, len(data.classes), count)
    images = data.test.images[rows.flatten()]
    warped, predicted = _seen_and_guessed(model, images)
    look_for = look_for or "Left of each pair: the test image; right: what the classifier sees, and its guess."
    fig = _figure(10.8, title, look_for, w_pad=0.005, h_pad=0.005)
    widths = ([1, 1, 0.2] * count)[:-1]  # a little air between the pairs
    axes = fig.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    for ax in axes[:, 2::3].flat:
        ax.set_visible(False)
    for k, (before, after) in enumerate(zip(images, warped, strict=True)):
        row, column = divmod(k, count)
        left, right = axes[row, 3 * column], axes[row, 3 * column + 1]
        _show(left, before)
        _show(right, after)
        _mark(right, data.classes[predicted[k]], predicted[k] == row)
    for name, row in zip(data.classes, axes, strict=True):
        row[0].set_ylabel(f" {name} ", rotation=0, ha="right", va="center", fontsize=9)
    return fig


def curves(history: list[dict], title: str, test_accuracy: float | None = None) -> Figure:
    """Loss and accuracy over the epochs; the original experiment's test accuracy as a line for comparison."""
    fig = _figure(3.9, title, "Training is measured as the batches came, with dropout on: so it lies below the test.")
    loss, accuracy = fig.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name, style in (("train", dict(color=BLUE)), ("val", dict(color=ORANGE, linestyle="--"))):
        if history and f"{name}_loss" in history[0]:
            word = dict(train="training", val="validation")[name]
            loss.plot(epochs, [row[f"{name}_loss"] for row in history], marker=".", label=word, **style)
            accuracy.plot(epochs, [row[f"{name}_accuracy"] for row in history], marker=".", label=word, **style)
    if test_accuracy is not None and epochs:
        accuracy.plot(epochs[-1], test_accuracy, marker="*", markersize=13, color=RED, linestyle="none", clip_on=False,
                      label=f"test, at the end: {test_accuracy:.1%}")
    if title.startswith("CIFAR-10"):
        accuracy.axhline(TUTORIAL_TEST, color=GREY, linestyle=":",
                         label=f"original experiment, test: {TUTORIAL_TEST:.0%}")
    loss.set(xlabel="epoch", ylabel="cross-entropy, nats")
    accuracy.set(xlabel="epoch", ylabel="accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if accuracy.get_legend_handles_labels()[0]:
        accuracy.legend(fontsize=8.5, loc="lower right")
    for ax in (loss, accuracy):
        ax.set_xlim(0.5, max(epochs, default=1) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def theta_histograms(seen: diagnostics.Survey, title: str) -> Figure:
    """How the transformer's answers are spread over the images: rotation, scale, shear, shifts."""
    columns = diagnostics.readable(seen.theta)
    units = dict(rotation="degrees", scale="above 1: zoomed out", shear="", shift_x="half-widths",
                 shift_y="half-widths")
    fig = _figure(3.0, title, "Dashed: the identity. One narrow spike: every image gets the same treatment.")
    for ax, (name, values) in zip(fig.subplots(1, len(columns)), columns.items(), strict=True):
        ax.hist(values.double().numpy(), bins=40, color=BLUE)  # float32 fails on a narrow spike: too many bins
        ax.axvline(1 if name == "scale" else 0, color=GREY, linestyle="--", linewidth=1)
        ax.set_title(name.replace("_", " "), fontsize=10)
        ax.set_xlabel(units[name], fontsize=8)
        ax.set_yticks([])
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
    return fig


def _example(name: str) -> Tensor:
    """Parameters (1, num_params) that show what a family can do."""
    if name == "tps":  # pulls the picture's middle into a swirl, and leaves its corners alone
        points = transforms.control_points(transforms.TPS_POINTS).float()
        inner = (points.abs().amax(dim=1, keepdim=True) < 0.5).float()
        swirl = torch.stack([-points[:, 1], points[:, 0]], dim=1)
        edges = 0.12 * torch.stack([(3 * points[:, 1]).sin(), (3 * points[:, 0]).sin()], dim=1)
        return (0.9 * inner * swirl + (1 - inner) * edges).reshape(1, -1)
    return torch.tensor([{
        "translation": (0.3, 0.2),
        "rotation": (0.5,),
        "attention": (-0.5, 0.2, -0.2),
        "similarity": (0.5, -0.3, 0.1, 0.0),
        "affine": (0.9, 0.4, 0.0, -0.1, 0.8, 0.1),
        "projective": (0.9, 0.15, 0.0, 0.1, 0.9, 0.0, 0.6, -0.5),
    }[name]])


def families(image: Tensor, lines: int = 7) -> Figure:
    """One picture (C, S, S), uint8, under an example of each transformer family, with the grid that was sampled.

    Above: the input, and on it the lines x = const and y = const of the output: where the sampler looks.
    Below: what comes out, where those lines are straight again.
    """
    fig = _figure(2.95, "The transformer families", "Above: the input, and the grid at which it is read. "
                  "Below: the output, where that grid is straight again.", w_pad=0.02, h_pad=0.02)
    axes = fig.subplots(2, len(transforms.FAMILIES))
    size = image.shape[-1]
    for (above, below), family in zip(axes.T, transforms.FAMILIES.values(), strict=True):
        theta = family.theta(_example(family.name))
        warped = sample(image[None] / 255, family.grid_of(theta, size))[0]
        _show(above, image)
        _show(below, warped)
        grid = family.grid_of(theta, 96)
        _draw_grid(above, grid[0], size, lines)
        _draw_grid(below, transforms.identity_grid(grid)[0], size, lines)
        above.set_title(family.name, fontsize=10, pad=3)
        below.set_xlabel(f"{family.num_params} parameter{'s' if family.num_params > 1 else ''}", fontsize=8)
    return fig


def _draw_grid(ax, grid: Tensor, size: int, lines: int) -> None:
    """A sampling grid (H, W, 2) as `lines` bent lines each way on a picture of `size` pixels; its frame is thick."""
    pixels = ((grid + 1) * size - 1) / 2  # [-1, 1], edge to edge, to the pixel coordinates that imshow has
    picks = torch.linspace(0, len(grid) - 1, lines).round().long().tolist()
    for k in picks:
        width = 1.8 if k in (picks[0], picks[-1]) else 0.6
        for line in (pixels[k], pixels[:, k]):
            ax.plot(*line.T.numpy(), color="white", linewidth=width + 0.7, alpha=0.6)  # seen on any ground
            ax.plot(*line.T.numpy(), color=RED, linewidth=width)
    ax.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
