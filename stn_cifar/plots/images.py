"""Figures made of images: the input, where the transformer samples it, the classifier's input."""

import math
from itertools import chain
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ..data import Data, Split
from ..diagnostics import evaluating
from .style import image_grid, label_prediction, own_style, short

CLASSES = 10  # shown at most, of more the first ones: so that pictures stay large enough
HELD_OUT = ("test", "val", "train")  # whose images are shown: the first of these that there is
WORDS = dict(train="training", val="validation", test="test")


class Examples(NamedTuple):
    """Images that are drawn, the same ones every time."""

    images: Tensor  # (N, C, S, S), class by class
    labels: list[int]
    kind: str  # of which split: "test"
    note: str  # says how many classes are left out, if any are


def title_of(config, data, epoch: int | None = None) -> str:
    """ "CIFAR-10 · tutorial (affine) · epoch 50": how every title of a run's figures begins."""
    if config is None:  # a model put together by hand
        return data.name
    images = data.name if config.distortion is None else f"{data.name}, {config.distortion}"
    transformer = config.transform if config.stn else "no transformer"
    end = "" if epoch is None else f" · epoch {epoch}"
    return f"{images} · {config.name} ({transformer}){end}"


def first_of_each_class(split: Split, num_classes: int, count: int) -> list[Tensor]:
    """Indices of the first `count` images of each class; fewer, or none, where it has no more."""
    labels = split.labels.cpu()
    return [(labels == c).nonzero()[:count, 0] for c in range(num_classes)]


def split_of(data: Data, names: tuple[str, ...] = HELD_OUT) -> tuple[Split, str]:
    """The first split of `names` that `data` has, and its name in words."""
    return next((split, WORDS[name]) for name in names
                if (split := getattr(data, name)) is not None)


def examples(data: Data, count: int, names: tuple[str, ...] = HELD_OUT) -> Examples:
    """The first `count` images of each class in the first split of `names`; of CLASSES at most."""
    split, kind = split_of(data, names)
    rows = [row for row in first_of_each_class(split, len(data.classes), count) if len(row)]
    chosen = torch.cat(rows[:CLASSES])
    shown = min(len(rows), CLASSES)
    note = f" {shown} of {len(data.classes)} classes." if shown < len(data.classes) else ""
    return Examples(split.images[chosen], split.labels[chosen].tolist(), kind, note)


def predict(model, images: Tensor) -> tuple[Tensor, Tensor]:
    """The classifier's inputs made of `images`, in [0, 1], and probabilities (N, classes); CPU."""
    with evaluating(model):
        parts = [(model.transform(batch)[0].cpu(), model(batch).float().softmax(1).cpu())
                 for batch in images.to(model.device).split(1000)]
    warped, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
    return warped, probabilities


# ---- image and classifier's input ---------------------------------------------------------------


@own_style()
def samples(data: Data, count: int = 10) -> Figure:
    """The first `count` training images of each class, one row a class."""
    chosen = examples(data, count, ("train",))
    labels = [*dict.fromkeys(chosen.labels)]
    rows = chosen.images.split([chosen.labels.count(label) for label in labels])
    note = f"{len(data.classes)} classes; each image is {data.size} x {data.size} pixels."
    fig, ax, corners = image_grid(f"{data.name}: training images", note + chosen.note,
                                  _filled(rows, count), count, min(64, 700 // count - 4),
                                  left=92, above=4)
    for label in labels:
        x, y = corners[chosen.labels.index(label)]
        ax.text(x - 8, y + 32, short(data.classes[label]), ha="right", va="center")
    return fig


def _filled(rows, count: int) -> list:
    """What is in `rows`, and None where one has less than `count`."""
    return [item for row in rows for item in [*row, *[None] * (count - len(row))]]


@own_style()
def strip(model, data: Data, title: str | None = None) -> Figure:
    """A test image of each class above the classifier's input made of it, and the prediction."""
    chosen, warped, truth, predicted = _compared(model, data, 1)
    note = f"Above: the {chosen.kind} image. Below: the classifier's input, and its prediction."
    columns = len(truth)
    return image_grid(title or title_of(model.config, data), note + chosen.note,
                      [*chosen.images, *warped], columns, min(160, 800 // columns // 32 * 32),
                      truth + predicted, gap=14)[0]


@own_style()
def pairs(model, data: Data, title: str | None = None, count: int = 4) -> Figure:
    """The first `count` test images of each class, each beside the classifier's input made of it.

    Above an image stands its class, above the input the prediction, with a check mark or a cross.
    """
    chosen, *content = _compared(model, data, count)
    note = (f"Left: the {chosen.kind} image, and its class. Right: the classifier's input, and its "
            "prediction.")
    return _pairs_figure(title or title_of(model.config, data), note + chosen.note, chosen.images,
                         *content)


def _compared(model, data: Data, count: int) -> tuple[Examples, Tensor, list[str], list[str]]:
    """Images of each class, the inputs made of them, their classes, and predictions in words."""
    chosen = examples(data, count)
    warped, probabilities = predict(model, chosen.images)
    predicted = [label_prediction(data.classes[p], p == label) for p, label in zip(
        probabilities.argmax(1).tolist(), chosen.labels, strict=True)]
    return chosen, warped, [short(data.classes[label]) for label in chosen.labels], predicted


def _pairs_figure(title: str, note: str, images: Tensor, warped: Tensor, *captions) -> Figure:
    """Images and the classifier's inputs made of them, side by side, four pairs a line."""
    tiles, words = (list(chain(*zip(*both, strict=True))) for both in ((images, warped), captions))
    return image_grid(title, note, tiles, 8, 96, words, gap=5, together=2)[0]


@own_style()
def mistakes(model, data: Data, title: str | None = None, count: int = 12) -> Figure:
    """The `count` test images whose wrong prediction has the highest probability; surest first."""
    split, kind = split_of(data)
    warped, probabilities = predict(model, split.images)
    sure, predicted = probabilities.max(1)
    labels = split.labels.cpu()
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)[:count]]
    note = f"{len(wrong):,} of {len(labels):,} {kind} images are predicted wrongly."
    if len(wrong):
        note += " Left: the image, and its class. Right: the classifier's input, its prediction."
    guesses = [f"{label_prediction(data.classes[predicted[k]], False)} {sure[k]:.0%}"
               for k in worst]
    return _pairs_figure(title or title_of(model.config, data), note, split.images[worst],
                         warped[worst], [short(data.classes[labels[k]]) for k in worst], guesses)


@own_style()
def turned_and_upright(model, data: Data, title: str | None = None, count: int = 10) -> Figure:
    """Test images that were turned, and what the transformer makes of them: large discs, in lines.

    The first image of each of `count` classes. For data distorted by a rotation, as `taught` has.
    """
    chosen, warped, names, predicted = _compared(model, data, 1)
    shown = chosen.images[:count], warped[:count]
    columns = min(5, len(shown[0]))
    lines, words = ([row[k:k + columns] for k in range(0, len(shown[0]), columns) for row in both]
                    for both in (shown, (names[:count], predicted[:count])))
    bins = model.transformer.pose_bins
    quarter = bins is not None and bins.angle_span < 2 * math.pi
    note = ("Above: photographs turned by a random angle, shown in a disc; below: what the "
            + ("classifier sees: straight, on any of four sides." if quarter else
               "classifier sees, and its prediction."))
    fig, ax, corners = image_grid(
        title or title_of(model.config, data), note, _filled(lines, columns), columns, 146,
        _filled(words, columns), gap=9, left=26, interpolation="bicubic")
    for picture, (x, y) in zip(ax.images, corners, strict=True):
        picture.set_clip_path(Circle((x + 73, y + 73), 70, transform=ax.transData))
    firsts = [corner for corner in corners if corner[0] == corners[0][0]]
    for (x, y), word in zip(firsts, ("turned", "aligned") * len(firsts), strict=False):
        ax.text(x - 10, y + 73, word, rotation=90, ha="center", va="center")
    return fig


# ---- means --------------------------------------------------------------------------------------


@own_style()
def class_means(model, data: Data, title: str | None = None) -> Figure:
    """The mean of each class's test images, and of the classifier's inputs made of them.

    Below each its contrast: the standard deviation over the pixels, in grey levels of 256, mean
    over the channels. Means are pale: both rows have their colours stretched alike, and it says so.
    """
    chosen = examples(data, 1)
    means = [mean for row in mean_images(model, data) for mean in row[chosen.labels]]
    contrasts = [255 * mean.std(dim=(1, 2), correction=0).mean().item() for mean in means]
    middles = [mean.mean(dim=(1, 2), keepdim=True) for mean in means]
    changes = [mean - middle for mean, middle in zip(means, middles, strict=True)]
    stretch = max(1, int(0.5 / max(0.005, *(change.abs().max().item() for change in changes))))
    count = len(chosen.labels)
    before, after = sum(contrasts[:count]) / count, sum(contrasts[count:]) / count
    below = ("Below each: contrast, the standard deviation over its pixels in grey levels; mean "
             f"{before:.1f} before and {after:.1f} after ({after / max(before, 1e-9):.2f} times). "
             "A border from zooming out adds some."
             + f" Colours are stretched {stretch} times, in both rows alike." * (stretch > 1))
    tile = min(96, 700 // count // 32 * 32)
    fig, ax, corners = image_grid(
        title or title_of(model.config, data), "Sharper after than before, if the transformer "
        "aligns the images of a class." + chosen.note,
        [middle + stretch * change for middle, change in zip(middles, changes, strict=True)],
        count, tile, [short(data.classes[label]) for label in chosen.labels], gap=10, left=64,
        under=16, below=[below])
    for (x, y), contrast in zip(corners, contrasts, strict=True):
        ax.text(x + tile / 2, y + tile + 12, f"{contrast:.1f}", fontsize=8, ha="center")
    for (x, y), word in ((corners[0], "before"), (corners[count], "after")):
        ax.text(x - 8, y + tile / 2, word, ha="right", va="center")
    return fig


def mean_images(model, data: Data) -> tuple[Tensor, Tensor]:
    """Each class's mean test image, (classes, C, S, S) in [0, 1], and mean classifier's input."""
    split, _ = split_of(data)
    one_hot = torch.nn.functional.one_hot(split.labels.cpu(), len(data.classes)).T.float()
    weights = one_hot / one_hot.sum(1, keepdim=True).clamp_min(1)
    plain, warped = split.images.cpu() / 255, predict(model, split.images)[0].nan_to_num(0)
    return torch.tensordot(weights, plain, 1), torch.tensordot(weights, warped, 1)
