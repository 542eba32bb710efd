"""Figures of where a transformer samples: drawn on the input; and each family's grid."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Data
from ..diagnostics import readable, statistics
from ..sampler import sample
from ..transforms import FAMILIES, Family
from .images import examples, predict, title_of
from .style import RED, own_style, short, show, titled_figure

REACH = 3.0  # half-widths shown around an image at most
AROUND = "#E4E4E4"  # what is shown around an image
FINE = 95  # points along each side of a region: lines bend smoothly; odd: one is in the middle
EXAMPLES = {  # parameters that show what a family can do
    "translation": (0.3, 0.2),
    "rotation": (0.5,),
    "attention": (-0.5, 0.2, -0.2),
    "similarity": (0.5, -0.3, 0.1, 0.0),
    "affine": (0.9, 0.4, 0.0, -0.1, 0.8, 0.1),
    "projective": (0.9, 0.15, 0.0, 0.1, 0.9, 0.0, 0.6, -0.5),
}


@own_style()
def sampled_regions(model, data: Data, title: str | None = None, count: int = 1) -> Figure:
    """The outline of the region that is sampled, on the first `count` test images of each class.

    A handle marks the region's upper side; a thin plate spline shows its grid too. Regions may
    reach beyond the image, onto grey; one whose middle lies too far out is pointed at by an arrow.
    """
    chosen = examples(data, count)
    found, family = statistics(model, chosen.images), model.transformer.family
    regions, turns = region(family, found.theta), readable(found.theta)["rotation"]
    lines = -(-len(regions) // 5)
    note = ("Outlined: the region that becomes the classifier's input; its handle: the upper side. "
            "Grey: outside the image.")
    fig = titled_figure(200 * lines, title or title_of(model.config, data), note + chosen.note,
                        w_pad=0.02, h_pad=0.02)
    axes = fig.subplots(lines, 5, squeeze=False).flatten()
    for ax in axes[len(regions):]:
        ax.remove()
    for k, ax in enumerate(axes[:len(regions)]):
        _outline(ax, chosen.images[k], regions[k], _reach(regions), family)
        ax.set_title(short(data.classes[chosen.labels[k]]), fontsize=9, pad=3)
        words = f"scale {found.scale[k]:.2f}, {turns[k].round() + 0:.0f}°"  # + 0: no minus zero
        words += ", mirrored" * bool(found.determinant[k] < 0)
        ax.set_xlabel(words if regions[k].isfinite().all() else "not finite", fontsize=8)
    return fig


@own_style()
def single_image(model, image: Tensor, classes: tuple[str, ...], title: str) -> Figure:
    """An image (C, S, S), uint8 or float in [0, 1]: the region sampled, the input, the prediction.
    """
    warped, probabilities = predict(model, image[None])
    family = model.transformer.family
    regions = region(family, statistics(model, image[None]).theta)
    fig = titled_figure(258, title, "Left: the image, and the region that the transformer samples; "
                        "its handle is on the upper side.")
    left, middle, right = fig.subplots(1, 3)
    _outline(left, image, regions[0], _reach(regions), family)
    show(middle, warped[0])
    best = probabilities[0].nan_to_num(0).topk(min(10, len(classes)))
    bars = right.barh([short(classes[k], 16) for k in best.indices.tolist()], best.values.tolist())
    right.bar_label(bars, [f"{value:.0%}" for value in best.values.tolist()], padding=3)
    right.set(xlim=(0, 1.15), xticks=[], box_aspect=1)
    right.invert_yaxis()
    right.grid(False)
    right.spines["bottom"].set_visible(False)
    for ax, name in ((left, "sampled region"), (middle, "classifier's input"),
                     (right, "prediction")):
        ax.set_title(name)
    return fig


def region(family: Family, theta: Tensor) -> Tensor:
    """Points (B, n, n, 2) that theta samples, edge to edge, row by row, in input coordinates."""
    points = family.grid_of(theta, FINE)  # at the centres of fine pixels: half a step inside
    for dim in (1, 2):
        first, second = points.narrow(dim, 0, 1), points.narrow(dim, 1, 1)
        last, before = points.narrow(dim, FINE - 1, 1), points.narrow(dim, FINE - 2, 1)
        points = torch.cat([1.5 * first - 0.5 * second, points, 1.5 * last - 0.5 * before], dim)
    return points


def draw_region(ax: Axes, points: Tensor, lines: int = 2, top: bool = False) -> None:
    """A region (n, n, 2) on an image that is shown: its outline, and `lines` lines each way.

    top: give it a handle, as drawing programs do, on its upper side.
    """
    picks = torch.linspace(0, len(points) - 1, lines).round().long().tolist()
    drawn = [(line, 1.8 if k in (picks[0], picks[-1]) else 0.6)
             for k in picks for line in (points[k], points[:, k])]
    upper, lower = points[[0, -1], len(points) // 2]
    handle = torch.stack([upper, upper + (upper - lower) / 8])
    for line, width in drawn + [(handle, 1.8)] * top:
        dot = dict(marker="o", markersize=5, markevery=[1]) if line is handle else {}
        ax.plot(*line.T, color="white", linewidth=width + 0.7, alpha=0.6, markeredgewidth=1.7,
                **dot)
        ax.plot(*line.T, color=RED, linewidth=width, **dot)


def _outline(ax: Axes, image: Tensor, points: Tensor, reach: float, family: Family) -> None:
    """An image and its sampled region (n, n, 2); an arrow where that is beyond `reach`."""
    show(ax, image)
    if points.isfinite().all():
        draw_region(ax, points, lines=2 if family.is_matrix else 5, top=True)
        middle = points.mean(dim=(0, 1))
        if middle.abs().max() > reach:
            end, start = reach * middle / middle.abs().max(), middle / middle.norm()
            ax.annotate("", end.tolist(), start.tolist(),
                        arrowprops=dict(arrowstyle="-|>", color=RED, linewidth=2))
    ax.set(xlim=(-reach, reach), ylim=(reach, -reach), facecolor=AROUND)


def _reach(regions: Tensor) -> float:
    """How far to show, half-widths, so that regions, their handles, and images too, are seen."""
    return min(max(1.1, 1.3 * regions.nan_to_num(0).abs().max().item()), REACH)


def _example(family: Family) -> Tensor:
    """Parameters (1, num_params) of an example of `family`."""
    if family.name != "tps":
        identity = family.identity()
        return torch.tensor([EXAMPLES.get(family.name, (identity + 0.2).tolist())])
    # pulls the image's middle into a swirl, and leaves its corners alone
    points = family.theta(family.identity()[None])[0]
    inner = (points.abs().amax(dim=1, keepdim=True) < 0.5).float()
    swirl = torch.stack([-points[:, 1], points[:, 0]], dim=1)
    edges = 0.12 * torch.stack([(3 * points[:, 1]).sin(), (3 * points[:, 0]).sin()], dim=1)
    return (0.9 * inner * swirl + (1 - inner) * edges).reshape(1, -1)


@own_style()
def families(image: Tensor, lines: int = 7) -> Figure:
    """One image (C, S, S), uint8, under an example of each family, with its sampling grid.

    Above: the input, and on it the lines x = const and y = const of the output. Below: the output,
    where those lines are straight again.
    """
    size = image.shape[-1]
    fig = titled_figure(250, "The transformer families", "Above: the input, and the grid at which "
                        "it is sampled. Below: the output, where that grid is straight again.",
                        w_pad=0.02, h_pad=0.04)
    axes = fig.subplots(2, len(FAMILIES))
    for above, below, family in zip(*axes, FAMILIES.values(), strict=True):
        theta, identity = (family.theta(params) for params in (_example(family),
                                                               family.identity()[None]))
        show(above, image)
        show(below, sample(image[None] / 255, family.grid_of(theta, size))[0])
        draw_region(above, region(family, theta)[0], lines)
        draw_region(below, region(family, identity)[0], lines)
        above.set_title(family.name)
        plural = "s" * (family.num_params > 1)
        below.set_xlabel(f"{family.num_params} parameter{plural}", fontsize=8)
    return fig
