"""Figures made of pictures: what goes in, where the transformer looks, what the classifier sees and says."""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .data import Data, Split
from .diagnostics import cell_areas, evaluating, readable
from .drawing import BLUE, RED, ask, draw_region, handle, mark, page, region, short, show, to_pixels
from .transforms import spread

FAR, FARTHEST = 3.0, 5.0  # half-widths shown around a picture's middle: if a few regions, or most, reach out so far
OUTSIDE = "#E4E4E4"  # what is shown around a picture


def first_of_each_class(split: Split, num_classes: int, count: int) -> Tensor:
    """Indices (num_classes, count) of the first `count` images of each class: the same images every time."""
    labels = split.labels.cpu()
    return torch.stack([(labels == c).nonzero()[:count, 0] for c in range(num_classes)])


def samples(data: Data, count: int = 10) -> Figure:
    """The first `count` training images of each class, one row a class."""
    rows = first_of_each_class(data.train, len(data.classes), count)
    size = data.train.images.shape[-1]
    look_for = f"{len(data.classes)} classes; each picture is {size} x {size} pixels."
    fig = page(8.6, f"{data.name}: training images", look_for, w_pad=0.01, h_pad=0.01)
    axes = fig.subplots(*rows.shape, squeeze=False)
    for name, row, indices in zip(data.classes, axes, rows, strict=True):
        for ax, index in zip(row, indices, strict=True):
            show(ax, data.train.images[index])
        _name_row(row[0], name)
    return fig


def _name_row(ax, name: str) -> None:
    ax.set_ylabel(f" {short(name)} ", rotation=0, ha="right", va="center", fontsize=9)


def strip(model, data: Data, title: str, look_for: str = "") -> Figure:
    """One fixed test image of each class, in two rows: as it is, and as the classifier sees it, with its guess."""
    images = data.test.images[first_of_each_class(data.test, len(data.classes), 2)[:, 1]]
    answers = ask(model, images)
    look_for = look_for or "Above: the test image. Below: what the classifier sees of it, and its guess."
    fig = page(2.75, title, look_for, w_pad=0.02, h_pad=0.01)
    axes = fig.subplots(2, len(images))
    for k, (name, guess) in enumerate(zip(data.classes, answers.probabilities.argmax(1).tolist(), strict=True)):
        show(axes[0, k], images[k])
        show(axes[1, k], answers.seen[k])
        axes[0, k].set_title(short(name), fontsize=8, pad=2)
        mark(axes[1, k], short(data.classes[guess]), guess == k)
    return fig


def pairs(model, data: Data, title: str, look_for: str = "", count: int = 4) -> Figure:
    """Fixed test images, one row a class: each original beside what the classifier sees of it.

    Above each transformed image stands the predicted class, with a check mark where it is right and a cross,
    the true class being the row's, where it is wrong.
    """
    rows = first_of_each_class(data.test, len(data.classes), count)
    images = data.test.images[rows.flatten()]
    answers = ask(model, images)
    look_for = look_for or ("Left of each pair: the test image; right: what the classifier sees, and its guess. "
                            "The row names the truth.")
    fig = page(10.8, title, look_for, w_pad=0.005, h_pad=0.005)
    axes = _pair_axes(fig, len(rows), count)
    for k, guess in enumerate(answers.probabilities.argmax(1).tolist()):
        row, (left, right) = k // count, axes[k]
        show(left, images[k])
        show(right, answers.seen[k])
        mark(right, short(data.classes[guess]), guess == row)
        if k % count == 0:
            _name_row(left, data.classes[row])
    return fig


def _pair_axes(fig: Figure, rows: int, columns: int) -> list[tuple]:
    """Axes for rows x columns pairs, (left, right) each, row by row, with a little air between the pairs."""
    widths = ([1, 1, 0.2] * columns)[:-1]
    axes = fig.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for ax in axes[:, 2::3].flat:
        ax.set_visible(False)
    return [(row[3 * k], row[3 * k + 1]) for row in axes for k in range(columns)]


def where(model, data: Data, title: str, look_for: str = "", count: int = 1) -> Figure:
    """Where the transformer looks: the sampled region's outline on `count` fixed test images of each class.

    The first are those of `strip`. A handle marks the region's upper side; a thin plate spline shows its grid too.
    Regions may reach beyond the picture, on grey; one whose middle lies too far out is pointed at by an arrow.
    """
    images = data.test.images[first_of_each_class(data.test, len(data.classes), count + 1)[:, 1:].T.flatten()]
    answers = ask(model, images)
    look_for = look_for or ("Outlined: what is handed on, the handle on its upper side. Grey: outside. "
                            "Below: the region's size and turn.")
    columns = min(5, len(images))
    rows = -(-len(images) // columns)
    fig = page(0.62 + 2 * rows, title, look_for, w_pad=0.02, h_pad=0.02)
    axes = fig.subplots(rows, columns, squeeze=False).flatten()
    reach = _reach(answers.region)
    turns = readable(answers.theta)["rotation"]
    still = region(model.family, model.family.theta(model.family.identity()[None]))
    sizes = (spread(answers.region) / spread(still)).sqrt()
    mirrored = cell_areas(answers.region).sum(dim=(1, 2)) < 0
    for k, ax in enumerate(axes):
        if k >= len(images):
            ax.set_visible(False)
            continue
        _show_region(ax, images[k], answers.region[k], reach, model.family.is_matrix)
        ax.set_title(short(data.classes[k % len(data.classes)]), fontsize=9, pad=3)
        words = f"size {sizes[k]:.2f}, {turns[k].round() + 0:.0f}°"  # + 0: no minus zero
        ax.set_xlabel(words + (", mirrored" if mirrored[k] else ""), fontsize=8)
    return fig


def _reach(regions: Tensor) -> float:
    """How far to show, half-widths, so that regions (B, n, n, 2) and their handles are seen; pictures stay visible."""
    needed = torch.stack([torch.cat([points.flatten(0, 1), handle(points)]).abs().max() for points in regions]) * 1.1
    return max(1.1, min(needed.max().item(), max(FAR, min(needed.median().item(), FARTHEST))))


def _show_region(ax, image: Tensor, points: Tensor, reach: float, is_matrix: bool) -> None:
    """An image and the region (n, n, 2) that is read of it; an arrow where that lies beyond `reach` half-widths."""
    show(ax, image)
    size = image.shape[-1]
    draw_region(ax, points, size, lines=2 if is_matrix else 5, top=True)
    low, high = to_pixels(torch.tensor([-reach, reach]), size).tolist()
    ax.set(xlim=(low, high), ylim=(high, low), facecolor=OUTSIDE)
    middle = points.mean(dim=(0, 1))
    if middle.abs().max() > reach:
        ends = torch.stack([reach * middle / middle.abs().max(), middle / middle.norm()])
        ax.annotate("", *to_pixels(ends, size).tolist(), arrowprops=dict(arrowstyle="-|>", color=RED, linewidth=2))


def class_means(model, data: Data, title: str, batch_size: int = 1000) -> Figure:
    """The mean of each class's test images, and of what the classifier sees of them.

    Below each its contrast: the standard deviation over the pixels, in grey levels of 256, mean over the channels.
    Means are pale, so both rows are shown with their colours stretched alike, by a factor that is told.
    """
    means = mean_images(model, data, batch_size)
    contrasts = [255 * row.std(dim=(2, 3), correction=0).mean(1) for row in means]
    whole = [contrast.mean().item() for contrast in contrasts]
    middles = [row.mean(dim=(2, 3), keepdim=True) for row in means]
    farthest = max((row - middle).abs().max().item() for row, middle in zip(means, middles, strict=True))
    stretch = max(1, math.floor(0.5 / max(farthest, 0.005)))
    told = ("Below each: contrast, the standard deviation over its pixels in grey levels; mean "
            f"{whole[0]:.1f} before and {whole[1]:.1f} after ({whole[1] / max(whole[0], 1e-9):.2f} times). "
            "A border from zooming out adds some."
            + (f" Colours are stretched {stretch} times, in both rows alike." if stretch > 1 else ""))
    fig = page(2.7, title, "Sharper after than before, if the transformer aligns the pictures of a class.",
               below=[told], w_pad=0.02, h_pad=0.01)
    axes = fig.subplots(2, len(data.classes), squeeze=False)
    for row, name, pictures, middle, contrast in zip(axes, ("before", "after"), means, middles, contrasts, strict=True):
        for ax, picture, value in zip(row, middle + stretch * (pictures - middle), contrast.tolist(), strict=True):
            show(ax, picture)
            ax.set_xlabel(f"{value:.1f}", fontsize=8, labelpad=2)
        _name_row(row[0], name)
    for ax, name in zip(axes[0], data.classes, strict=True):
        ax.set_title(short(name), fontsize=8, pad=2)
    return fig


def mean_images(model, data: Data, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Mean test image of each class, (classes, C, S, S) in [0, 1], and mean of what the classifier sees of them."""
    sums = [0, 0]
    one_hot = torch.nn.functional.one_hot(data.test.labels.cpu(), len(data.classes)).T.float()
    with evaluating(model):
        for images, share in zip(data.test.images.split(batch_size), one_hot.split(batch_size, 1), strict=True):
            seen = model.transform(images.to(model.mean.device))[0].cpu()
            plain = images.cpu().float() / (255 if images.dtype == torch.uint8 else 1)
            for k, pictures in enumerate((plain, seen)):
                sums[k] = sums[k] + torch.einsum("kb,bchw->kchw", share, pictures)
    counts = one_hot.sum(1).clamp_min(1).view(-1, 1, 1, 1)
    return sums[0] / counts, sums[1] / counts


def mistakes(model, data: Data, title: str, count: int = 12, batch_size: int = 1000) -> Figure:
    """The test images that the model got wrong with the highest probability, most confident first.

    In each pair: the image under its true class, and what the classifier sees under its guess.
    """
    with evaluating(model):
        probabilities = torch.cat([model(images.to(model.mean.device)).float().softmax(1).cpu()
                                   for images in data.test.images.split(batch_size)])
    sure, guesses = probabilities.max(1)
    labels = data.test.labels.cpu()
    wrong = (guesses != labels).nonzero()[:, 0]
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)[:count]]
    look_for = (f"{len(wrong):,} of {len(labels):,} test images are mistaken. Left: the image, and the truth; "
                "right: what is seen, and the guess." if len(wrong) else f"None of {len(labels):,} is mistaken.")
    columns = 3
    rows = -(-len(worst) // columns)
    fig = page(0.66 + 1.52 * rows, title, look_for, w_pad=0.01, h_pad=0.02)
    if not rows:
        return fig
    seen = ask(model, data.test.images[worst]).seen
    axes = _pair_axes(fig, rows, columns)
    for (left, right), index, picture in zip(axes, worst.tolist(), seen, strict=False):
        show(left, data.test.images[index])
        show(right, picture)
        left.set_title(short(data.classes[labels[index]]), fontsize=8, pad=2)
        mark(right, f"{short(data.classes[guesses[index]])} {sure[index]:.0%}", False)
    for pair in axes[len(worst):]:
        for ax in pair:
            ax.set_visible(False)
    return fig


def one(model, image: Tensor, classes: tuple[str, ...], title: str) -> Figure:
    """One picture (C, S, S), uint8 or float in [0, 1]: with the region that is sampled, as seen, and as classified."""
    answers = ask(model, image[None])
    look_for = "Left: the picture, and the region that the transformer hands on (the handle is on its upper side)."
    fig = page(3.2, title, look_for)
    left, middle, right = fig.subplots(1, 3)
    _show_region(left, image, answers.region[0], _reach(answers.region), model.family.is_matrix)
    left.set_title("where it looks", fontsize=10)
    show(middle, answers.seen[0])
    middle.set_title("what the classifier sees", fontsize=10)
    best = answers.probabilities[0].topk(min(10, len(classes)))
    bars = right.barh([short(classes[k], 16) for k in best.indices.tolist()], best.values.tolist(), color=BLUE)
    right.bar_label(bars, [f"{value:.0%}" for value in best.values.tolist()], padding=3, fontsize=9)
    right.set(xlim=(0, 1.15), xticks=[])
    right.invert_yaxis()
    right.spines[["top", "right", "bottom"]].set_visible(False)
    right.set_box_aspect(1)
    right.set_title("what it takes it for", fontsize=10)
    return fig
