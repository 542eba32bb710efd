"""Figures made of lines and numbers: training, theta, confusion, robustness, comparison."""

import math
from itertools import cycle

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, MultipleLocator
from torch import Tensor

from .. import diagnostics
from ..distortions import LOG_UNIFORM, UPRIGHT
from .style import BLUE, GREY, ORANGE, RED, STYLES, own_style, short, titled_figure

TUTORIAL_TEST = 0.57  # the original experiment this project began with
# quantity -> title, unit, its value for the identity, a range always shown: so that rounding
# errors do not look like news
QUANTITIES = dict(
    rotation=("rotation", "degrees", 0, (-2, 2)),
    scale=("scale", "above 1: zoomed out", 1, (0.95, 1.05)),
    shear=("shear", "", 0, (-0.05, 0.05)),
    shift_x=("shift x", "half-widths", 0, (-0.05, 0.05)),
    shift_y=("shift y", "half-widths", 0, (-0.05, 0.05)),
    outside=("outside the picture", "share of samples", 0, (0, 0.05)),
)
DISTORTED = dict(angle="rotation, degrees", shift_x="shift to the side, half-widths",
                 scale="scale (2: half as large)")
LEGEND = 118  # letters that fit on a line of it
NUMBERED = 20  # classes up to which a confusion matrix has numbers in its cells


def _column(rows: list[dict], name: str) -> np.ndarray:
    """`name` of each row; NaN, which is left out of a line, where a record has null."""
    return np.array([row[name] for row in rows], dtype=float)


def _epochs(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


@own_style()
def curves(history: list[dict], title: str, test_accuracy: float | None = None) -> Figure:
    """Loss and accuracy over the epochs of `history`, as `fit` returns it.

    On CIFAR-10 without distortion the original experiment's test accuracy is drawn too.
    """
    fig = titled_figure(328, title, "Training is measured on the batches as they came, dropout and "
                        "augmentation on: it may lie below the test.")
    loss, accuracy = fig.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name, split, style in (("train", "training", dict(color=BLUE)),
                               ("val", "validation", dict(color=ORANGE, linestyle="--"))):
        if history and f"{name}_loss" in history[0]:
            for ax, quantity in ((loss, "loss"), (accuracy, "accuracy")):
                ax.plot(epochs, _column(history, f"{name}_{quantity}"), marker=".", label=split,
                        **style)
    if test_accuracy is not None and epochs:
        accuracy.plot(epochs[-1], test_accuracy, marker="*", markersize=13, color=RED,
                      linestyle="none", clip_on=False,
                      label=f"test, at the end: {test_accuracy:.1%}")
    if title.startswith("CIFAR-10 "):  # undistorted, as the original experiment had it
        accuracy.axhline(TUTORIAL_TEST, color=GREY, linestyle=":",
                         label=f"original experiment, test: {TUTORIAL_TEST:.0%}")
    loss.set_ylabel("cross-entropy, nats")
    accuracy.set(ylabel="accuracy", ylim=(0, None))
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    if accuracy.get_legend_handles_labels()[0]:
        accuracy.legend(loc="lower right")
    for ax in (loss, accuracy):
        ax.set_xlim(0.5, max(epochs, default=1) + 0.5)
        _epochs(ax)
    return fig


@own_style()
def theta_histograms(statistics: diagnostics.Statistics, title: str) -> Figure:
    """How theta is distributed over the images, as people read it; and the findings in words."""
    finite = statistics.theta.flatten(1).isfinite().all(1)
    findings = diagnostics.findings(statistics) or ["alive and well-behaved, no sign of collapse."]
    below = ["Findings: " + findings[0], *findings[1:]]
    if left_out := len(finite) - int(finite.sum()):
        below.append(f"Left out: {left_out:,} of {len(finite):,} images: theta is not finite.")
    columns = diagnostics.readable(statistics.theta[finite])
    fig = titled_figure(238, title, "Dashed: the identity. One narrow spike: every image gets the "
                        "same treatment.", below)
    for ax, (name, values) in zip(fig.subplots(1, len(columns)), columns.items(), strict=True):
        word, unit, identity, always = QUANTITIES[name]
        values = values[values.isfinite()].double()  # float32 fails on a spike: too many bins
        ends = torch.cat([values, values.new_tensor(always)])
        ax.hist(values.numpy(), bins=40, range=(ends.min().item(), ends.max().item()))
        ax.axvline(identity, color=GREY, linestyle="--", linewidth=1)
        ax.set(title=word, xlabel=unit, yticks=[])
        ax.spines["left"].set_visible(False)
        ax.grid(False)
    return fig


@own_style()
def theta_bands(epochs: list[int], bands: list[dict[str, list[float]]], title: str) -> Figure:
    """Theta, epoch by epoch: `bands` holds what `diagnostics.quantiles` gave for each of `epochs`.

    Epoch 0 is the untrained model. What is not finite leaves a gap.
    """
    values = {name: np.array([band[name] for band in bands], dtype=float).reshape(-1, 5)
              for name in QUANTITIES}
    finite = all(np.isfinite(column).all() for column in values.values())
    fig = titled_figure(398, title, "Line: median; dark: half of the images; light: 90 %; dashed: "
                        "the identity; epoch 0: untrained. Watch for a lasting drift.",
                        [] if finite else ["Gaps: values that are not finite."])
    for ax, (name, quantiles) in zip(fig.subplots(2, 3).flat, values.items(), strict=True):
        word, unit, identity, always = QUANTITIES[name]
        quantiles[~np.isfinite(quantiles)] = np.nan
        lowest, low, median, high, highest = quantiles.T
        ax.fill_between(epochs, lowest, highest, color=BLUE, alpha=0.2, linewidth=0)
        ax.fill_between(epochs, low, high, color=BLUE, alpha=0.4, linewidth=0)
        ax.plot(epochs, median, color=BLUE, marker="." if len(epochs) == 1 else "")
        ax.axhline(identity, color=GREY, linestyle="--", linewidth=1)
        shown = [*always, *quantiles[np.isfinite(quantiles)]]
        ax.set(title=word, ylabel=unit, ylim=(min(shown), max(shown)))
        _epochs(ax)
    return fig


@own_style()
def confusion(confusion: Tensor, classes: tuple[str, ...], title: str) -> Figure:
    """Confusion matrix: of each true class (row) the share that got each prediction, in percent.

    confusion: counts (classes, classes), as `evaluate` or a record has it. Cells without an image
    are left empty; with more than NUMBERED classes there is room for colours only.
    """
    counts = torch.as_tensor(confusion)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    wrong = shares.clone().fill_diagonal_(0)
    true, predicted = divmod(wrong.argmax().item(), len(classes))
    note = "Rows: true class; columns: prediction; framed: correct. "
    note += (f"Most often confused: {short(classes[true], 16)}, predicted as "
             f"{short(classes[predicted], 16)}, {wrong.max():.1%}."
             if wrong.any() else "No mistake.")
    fig = titled_figure(628, title, note)
    ax, size = fig.subplots(), max(6, min(9, 120 / len(classes)))
    ax.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for row in range(len(classes)):
        ax.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.5))
        for column in range(len(classes)) if len(classes) <= NUMBERED else ():
            share = shares[row, column].item()
            if counts[row, column]:
                ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size,
                        color="white" if share > 0.71 else "black")  # 4.5:1 at least
    if len(classes) <= 50:  # else their numbers
        names = [short(name, 16) for name in classes]
        ax.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=size,
                      rotation_mode="anchor")
        ax.set_yticks(range(len(classes)), names, fontsize=size)
    ax.set(xlabel="prediction", ylabel="true class, percent of the row")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(False)
    return fig


@own_style()
def robustness(arms: dict[str, dict[str, dict[str, list[float]]]], title: str,
               chance: float = 0.1) -> Figure:
    """Accuracy against known distortions, for each arm: name -> `diagnostics.robustness`.

    Thin: each arm's accuracy on undistorted images, cut to the same disc, which may cost a model
    that was trained on whole images some points.
    """
    columns = _legend_columns(arms)
    fig = titled_figure(288 + 20 * math.ceil(len(arms) / columns), title, "Flat: no harm done. "
                        "Thin: undistorted, but cut to the same disc, which may cost some by "
                        "itself. Grey dots: chance.")
    quantities = list(next(iter(arms.values())))
    best = max(max(part["accuracy"]) for measured in arms.values() for part in measured.values())
    panels = fig.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    for ax, quantity in zip(panels, quantities, strict=True):
        for (name, measured), style in zip(arms.items(), cycle(STYLES)):
            values, accuracies = measured[quantity]["values"], measured[quantity]["accuracy"]
            ax.plot(values, accuracies, markersize=4, label=name, **style)
            if UPRIGHT[quantity] in values:
                ax.axhline(accuracies[list(values).index(UPRIGHT[quantity])], linewidth=0.8,
                           color=style["color"], alpha=0.7)
        ax.axhline(chance, color=GREY, linestyle=":", linewidth=1)
        ax.set(xlabel=DISTORTED.get(quantity, quantity), ylim=(0, min(1, best + 0.1)))
        if quantity in LOG_UNIFORM:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        if quantity == "angle":
            ax.xaxis.set_major_locator(MultipleLocator(90))
    panels[0].yaxis.set_major_formatter("{x:.0%}")
    panels[0].set_ylabel("accuracy")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns,
               frameon=False)
    return fig


@own_style()
def rotation_errors(arms: dict[str, list[int]], title: str) -> Figure:
    """Rotation error after the transformer: for each arm the counts of PoseRecovery.histogram.

    An arm without counts is not drawn, but keeps its colour, so that a second figure of the same
    arms has the same ones; at least one must have counts.
    """
    columns = _legend_columns([name for name, counts in arms.items() if counts])
    drawn = sum(map(bool, arms.values()))
    fig = titled_figure(278 + 20 * math.ceil(drawn / columns), title,
                        "Upright: at the left. Upside down: at the right. "
                        "Grey dots: chance, all errors equally frequent.")
    ax = fig.subplots()
    for (name, counts), style in zip(arms.items(), cycle(STYLES)):
        if not counts:
            continue
        edges = np.arange(len(counts) + 1) * diagnostics.BIN
        ax.stairs(np.array(counts) / max(1, sum(counts)), edges, color=style["color"],
                  linestyle=style.get("linestyle", "-"), linewidth=1.8, label=name)
    ax.axhline(diagnostics.BIN / 180, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlabel="rotation error, degrees", xlim=(0, 180), ylim=(0, None),
           ylabel=f"share of images, per {diagnostics.BIN}°")
    ax.xaxis.set_major_locator(MultipleLocator(30))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter("{x:.0%}")
    fig.legend(loc="outside lower center", ncols=columns, frameon=False)
    return fig


def _legend_columns(arms):
    """How many of the names of `arms` fit beside one another."""
    return min(5, LEGEND // (max(map(len, arms)) + 8))


@own_style()
def compare(with_history: list[dict], without_history: list[dict], with_accuracy: float,
            without_accuracy: float, title: str, images: int = 10_000) -> Figure:
    """One classifier with and without the transformer: accuracy over the epochs, and in the test.

    images: how many the two test accuracies, fractions, were measured on.
    """
    fig = titled_figure(308, title, "The intervals (95 %) cover the choice of test images only, "
                        "not how runs differ with the seed.")
    during, test = fig.subplots(1, 2, width_ratios=[3, 2])
    arms = (("with transformer", with_history, with_accuracy),
            ("without", without_history, without_accuracy))
    validated = all(rows and "val_accuracy" in rows[0] for _, rows, _ in arms)
    names = []
    for row, ((name, history, accuracy), style) in enumerate(zip(arms, STYLES, strict=False)):
        during.plot([epoch["epoch"] for epoch in history],
                    _column(history, "val_accuracy" if validated else "train_accuracy"),
                    markersize=4, label=name, **style)
        low, high = diagnostics.wilson_interval(accuracy, images)
        test.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], capsize=5,
                      markersize=8, **style)
        names.append(f"{name}\n{accuracy:.1%}\n({low:.1%} to {high:.1%})")
    during.set(ylim=(0, None),
               ylabel=f"{'validation' if validated else 'training'} accuracy")
    _epochs(during)
    during.yaxis.set_major_formatter("{x:.0%}")
    during.legend(loc="lower right")
    test.set(yticks=[0, 1], yticklabels=names, ylim=(1.5, -0.5),
             xlabel=f"accuracy on {images:,} test images")
    test.margins(x=0.2)
    test.xaxis.set_major_locator(MaxNLocator(4))
    test.xaxis.set_major_formatter("{x:.1%}")
    return fig
