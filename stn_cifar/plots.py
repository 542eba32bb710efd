"""Figures: each function returns a matplotlib Figure, readable at 800 pixels width and without colour vision.

Titles say data set, preset, epoch and what to look for; images are drawn in their true colours.
"""

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from . import diagnostics
from .config import Config
from .data import Data, Split

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
    fig = _figure(8.6, f"{data.name}: training images", "Ten classes; each picture is 32 x 32 pixels of three colours.",
                  w_pad=0.01, h_pad=0.01)
    axes = fig.subplots(*rows.shape, squeeze=False)
    for name, row, indices in zip(data.classes, axes, rows, strict=True):
        for ax, index in zip(row, indices, strict=True):
            _show(ax, data.train.images[index])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    return fig


@torch.no_grad()
def pairs(model, data: Data, title: str, look_for: str = "", count: int = 4) -> Figure:
    """Fixed test images, one row a class: each original beside what the classifier sees of it.

    Above each transformed image stands the predicted class, with a check mark where it is right and a cross,
    the true class being the row's, where it is wrong.
    """
    rows = first_of_each_class(data.test, len(data.classes), count)
    images = data.test.images[rows.flatten()]
    was_training = model.training
    model.eval()
    warped, _ = model.transform(images)
    predicted = model(images).argmax(1).cpu()
    model.train(was_training)
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
        good = predicted[k] == row
        right.set_title(f"{'✓' if good else '✗'} {data.classes[predicted[k]]}", fontsize=8, pad=2,
                        color=BLUE if good else RED, fontweight="normal" if good else "bold")
    for name, row in zip(data.classes, axes, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
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
        accuracy.plot(epochs[-1], test_accuracy, marker="*", markersize=13, color=RED, linestyle="none",
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
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def theta_histograms(seen: diagnostics.Survey, title: str) -> Figure:
    """How the transformer's answers are spread over the images: rotation, scale, shear, shifts."""
    columns = diagnostics.readable(seen.theta)
    units = dict(rotation="degrees", scale="1 = unchanged, above: zoomed out", shear="", shift_x="half-widths",
                 shift_y="half-widths")
    fig = _figure(3.0, title, "Dashed: the identity. One narrow spike: every image gets the same treatment.")
    for ax, (name, values) in zip(fig.subplots(1, len(columns)), columns.items(), strict=True):
        ax.hist(values.numpy(), bins=40, color=BLUE)
        ax.axvline(1 if name == "scale" else 0, color=GREY, linestyle="--", linewidth=1)
        ax.set_title(name.replace("_", " "), fontsize=10)
        ax.set_xlabel(units[name], fontsize=8)
        ax.set_yticks([])
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
    return fig
