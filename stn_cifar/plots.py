"""Figures: each function returns a matplotlib Figure, readable at 800 pixels width and without colour vision.

Titles say data set, preset, epoch and what to look for; images are drawn in their true colours. Those made of pictures
are in pictures.py and diagrams.py, and to be had from here like the rest.
"""

import math
from itertools import cycle

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter
from torch import Tensor

from . import diagnostics
from .config import Config
from .data import Data
from .diagrams import diagram, families
from .distortions import LOG_UNIFORM, UPRIGHT
from .drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, page, short
from .pictures import class_means, first_of_each_class, mistakes, one, pairs, samples, strip, where

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "RED", "class_means", "compare", "confusion", "curves", "diagram",
           "families", "first_of_each_class", "mistakes", "one", "pairs", "residual_angles", "robustness", "samples",
           "strip", "theta_bands", "theta_histograms", "title_of", "where"]

TUTORIAL_TEST = 0.57  # the original experiment this project began with
# quantity -> title, unit, its value for the identity, a range always shown: so rounding errors do not look like news
QUANTITIES = dict(
    rotation=("rotation", "degrees", 0, (-2, 2)),
    scale=("scale", "above 1: zoomed out", 1, (0.95, 1.05)),
    shear=("shear", "", 0, (-0.05, 0.05)),
    shift_x=("shift x", "half-widths", 0, (-0.05, 0.05)),
    shift_y=("shift y", "half-widths", 0, (-0.05, 0.05)),
    outside=("outside the picture", "share of samples", 0, (0, 0.05)),
)
LEGEND = 118  # letters that fit on a line of it
DISTORTED = dict(angle="rotation, degrees", shift_x="shift to the side, half-widths", scale="scale (2: half as large)")
# told apart by line and marker too
STYLES = [dict(color=BLUE, marker="o"), dict(color=RED, marker="s", linestyle="--"),
          dict(color=GREEN, marker="^", linestyle="-."), dict(color=ORANGE, marker="D", linestyle=":"),
          dict(color=GREY, marker="v", linestyle=(0, (6, 1, 1, 1))), dict(color=SKY, marker="P"),
          dict(color=PURPLE, marker="X", linestyle="--"), dict(color="black", marker="*", linestyle="-.")]


def title_of(config: Config, data: Data, epoch: int | None = None) -> str:
    """ "CIFAR-10 · tutorial (affine) · epoch 50": how every title of a run's figures begins."""
    kind = config.transform if config.stn else "no transformer"
    pictures = data.name if config.distortion is None else f"{data.name}, {config.distortion}"
    return f"{pictures} · {config.name} ({kind})" + ("" if epoch is None else f" · epoch {epoch}")


def curves(history: list[dict], title: str, test_accuracy: float | None = None) -> Figure:
    """Loss and accuracy over the epochs; the original experiment's test accuracy as a line for comparison."""
    fig = page(3.9, title, "Training is measured as the batches came, with dropout and the like on: it may lie below "
               "the test.")
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
    if title.startswith("CIFAR-10 "):  # undistorted, as the original experiment had it
        accuracy.axhline(TUTORIAL_TEST, color=GREY, linestyle=":",
                         label=f"original experiment, test: {TUTORIAL_TEST:.0%}")
    loss.set(xlabel="epoch", ylabel="cross-entropy, nats")
    accuracy.set(xlabel="epoch", ylabel="accuracy", ylim=(0, None))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if accuracy.get_legend_handles_labels()[0]:
        accuracy.legend(fontsize=8.5, loc="lower right")
    for ax in (loss, accuracy):
        ax.set_xlim(0.5, max(epochs, default=1) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _tidy(ax)
    return fig


def _tidy(ax) -> None:
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def theta_histograms(seen: diagnostics.Survey, title: str) -> Figure:
    """How the transformer's answers are spread over the images: rotation, scale, shear, shifts; and the verdict."""
    columns = diagnostics.readable(seen.theta)
    verdict = diagnostics.verdict(seen) or ["alive and well-behaved: no sign of collapse."]
    fig = page(3.0, title, "Dashed: the identity. One narrow spike: every image gets the same treatment.",
               below=["Verdict: " + verdict[0], *verdict[1:]])
    for ax, (name, values) in zip(fig.subplots(1, len(columns)), columns.items(), strict=True):
        word, unit, still, (low, high) = QUANTITIES[name]
        values = values.double().numpy()  # float32 fails on a narrow spike: too many bins
        ax.hist(values, bins=40, range=(min(values.min(), low), max(values.max(), high)), color=BLUE)
        ax.axvline(still, color=GREY, linestyle="--", linewidth=1)
        ax.set_title(word, fontsize=10)
        ax.set_xlabel(unit, fontsize=8)
        ax.set_yticks([])
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
    return fig


def theta_bands(epochs: list[int], bands: list[dict[str, list[float]]], title: str) -> Figure:
    """What the transformer does, epoch by epoch: `bands` holds what `diagnostics.quantiles` gave for each of `epochs`.

    Epoch 0 is the untrained model. The line is the median, the dark band holds half of the images, the light one 90 %.
    """
    fig = page(4.6, title, "Line: median; dark: half of the images; light: 90 %; dashed: the identity. "
               "Watch for a drift that does not stop.")
    if len(epochs) == 1:  # a band needs two points
        epochs, bands = [epochs[0] - 0.3, epochs[0] + 0.3], bands * 2
    for ax, (name, (word, unit, still, shown)) in zip(fig.subplots(2, 3).flat, QUANTITIES.items(), strict=True):
        ax.set_title(word, fontsize=10)
        ax.set_ylabel(unit, fontsize=8)
        ax.axhline(still, color=GREY, linestyle="--", linewidth=1)
        if epochs:
            lowest, low, middle, high, highest = zip(*(band[name] for band in bands), strict=True)
            ax.fill_between(epochs, lowest, highest, color=BLUE, alpha=0.2, linewidth=0)
            ax.fill_between(epochs, low, high, color=BLUE, alpha=0.4, linewidth=0)
            ax.plot(epochs, middle, color=BLUE)
            ax.set_ylim(min(*lowest, shown[0]), max(*highest, shown[1]))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.tick_params(labelsize=8)
        _tidy(ax)
    fig.supxlabel("epoch (0: untrained)", fontsize=9)
    return fig


def confusion(confusion: Tensor, classes: tuple[str, ...], title: str, percent: bool = True) -> Figure:
    """Confusion matrix: of each true class (row) the percentage, or the number, of images taken for each (column).

    confusion: counts (classes, classes), as `evaluate` or a record has it; cells without an image are left empty.
    """
    counts = torch.as_tensor(confusion)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    wrong = shares.clone().fill_diagonal_(0)
    true, taken = divmod(wrong.argmax().item(), len(classes))
    worst = f"Most often mistaken: {short(classes[true], 16)} for {short(classes[taken], 16)}, {wrong.max():.1%}."
    fig = page(6.9, title, "Rows: truth; columns: guess; framed: right. " + (worst if wrong.any() else "No mistake."))
    ax = fig.subplots()
    ax.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            share = shares[row, column].item()
            if counts[row, column]:
                ax.text(column, row, f"{100 * share:.0f}" if percent else f"{counts[row, column]:,}", ha="center",
                        va="center", fontsize=9, color="white" if share > 0.71 else "black")  # 4.5:1 at least
        ax.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.5))
    ticks = range(len(classes))
    ax.set_xticks(ticks, [short(name, 16) for name in classes], rotation=40, ha="right", fontsize=9)
    ax.set_yticks(ticks, [short(name, 16) for name in classes], fontsize=9)
    ax.set(xlabel="guess", ylabel="truth" + (", percent of the row" if percent else ", number of images"))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return fig


def robustness(arms: dict[str, dict[str, dict[str, list[float]]]], title: str, chance: float = 0.1) -> Figure:
    """Accuracy against known distortions, for each arm: name -> what `diagnostics.robustness` gave.

    Thin: each arm's accuracy on undistorted pictures, for reference; they are cut to the same disc, which a model that
    has seen whole pictures only may pay for with some points.
    """
    columns = min(5, LEGEND // (max(map(len, arms)) + 8))  # of the legend
    fig = page(3.5 + 0.2 * math.ceil(len(arms) / columns), title,
               "Flat: no harm done. Thin: undistorted, but cut to the same disc, which may cost some by itself. "
               "Dotted: chance.")
    quantities = list(next(iter(arms.values())))
    best = max(max(part["accuracy"]) for known in arms.values() for part in known.values())
    for ax, quantity in zip(fig.subplots(1, len(quantities), sharey=True, squeeze=False)[0], quantities, strict=True):
        for (name, known), style in zip(arms.items(), cycle(STYLES)):
            values, accuracies = known[quantity]["values"], known[quantity]["accuracy"]
            ax.plot(values, accuracies, markersize=4, label=name, **style)
            for value, accuracy in zip(values, accuracies, strict=True):
                if value == UPRIGHT[quantity]:
                    ax.axhline(accuracy, color=style["color"], linewidth=0.8, alpha=0.7)
        ax.axhline(chance, color=GREY, linestyle=":", linewidth=1)
        ax.set_xlabel(DISTORTED.get(quantity, quantity), fontsize=9)
        if quantity in LOG_UNIFORM:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        if quantity == "angle":
            ax.xaxis.set_major_locator(MultipleLocator(90))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_ylim(0, min(1, best + 0.1))
        ax.tick_params(labelsize=8)
        _tidy(ax)
    fig.axes[0].set_ylabel("accuracy", fontsize=9)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns,
               fontsize=8.5, frameon=False)
    return fig


def residual_angles(arms: dict[str, list[int]], title: str) -> Figure:
    """What is left of a known turn after the transformer: for each arm the counts of `Recovery.histogram`."""
    fig = page(3.4, title, "Upright: at the left. Upside down: at the right. Dotted: nothing learnt, all angles alike.")
    ax = fig.subplots()
    for (name, counts), style in zip(arms.items(), cycle(STYLES)):
        shares = torch.tensor(counts) / max(1, sum(counts))
        edges = torch.arange(len(counts) + 1) * diagnostics.BIN
        ax.stairs(shares, edges, color=style["color"], linestyle=style.get("linestyle", "-"), linewidth=1.8, label=name)
    ax.axhline(diagnostics.BIN / 180, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlabel="angle left, degrees", ylabel=f"share of images, per {diagnostics.BIN}°", xlim=(0, 180),
           ylim=(0, None))
    ax.xaxis.set_major_locator(MultipleLocator(30))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(fontsize=9)
    _tidy(ax)
    return fig


def compare(with_history: list[dict], without_history: list[dict], with_accuracy: float, without_accuracy: float,
            title: str, images: int = 10_000) -> Figure:
    """The same classifier with and without the transformer: accuracy over the epochs, and on `images` test images."""
    fig = page(3.7, title, "The intervals (95 %) cover the choice of test images only, not how runs differ with the "
               "seed.")
    during, test = fig.subplots(1, 2, width_ratios=[3, 2])
    arms = (("with transformer", with_history, with_accuracy), ("without", without_history, without_accuracy))
    kind = "val" if all(history and "val_accuracy" in history[0] for _, history, _ in arms) else "train"
    names = []
    for row, ((name, history, accuracy), style) in enumerate(zip(arms, STYLES, strict=False)):
        during.plot([epoch["epoch"] for epoch in history], [epoch[f"{kind}_accuracy"] for epoch in history],
                    markersize=4, label=name, **style)
        low, high = diagnostics.interval(accuracy, images)
        test.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], capsize=5, markersize=8, **style)
        names.append(f"{name}\n{accuracy:.1%}\n({low:.1%} to {high:.1%})")
    during.set(xlabel="epoch", ylabel=dict(val="validation", train="training")[kind] + " accuracy", ylim=(0, None))
    during.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    during.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    during.legend(fontsize=9, loc="lower right")
    test.set(yticks=[0, 1], yticklabels=names, ylim=(1.5, -0.5), xlabel=f"accuracy on {images:,} test images")
    test.margins(x=0.2)
    test.xaxis.set_major_locator(MaxNLocator(4))
    test.xaxis.set_major_formatter(PercentFormatter(1))
    for ax in (during, test):
        _tidy(ax)
    return fig
