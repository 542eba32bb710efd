"""Figures that explain: the transformer families, and how a spatial transformer works."""

import torch
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from ..sampler import sample
from ..transforms import FAMILIES, Family
from .images import draw_region, region
from .style import BLUE, GREY, RED, WIDTH, Page, figure_page, own_style, show

EXAMPLES = {  # parameters that show what a family can do
    "translation": (0.3, 0.2),
    "rotation": (0.5,),
    "attention": (-0.5, 0.2, -0.2),
    "similarity": (0.5, -0.3, 0.1, 0.0),
    "affine": (0.9, 0.4, 0.0, -0.1, 0.8, 0.1),
    "projective": (0.9, 0.15, 0.0, 0.1, 0.9, 0.0, 0.6, -0.5),
}


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
def families(image: Tensor, lines: int = 7) -> Page:
    """One image (C, S, S), uint8, under an example of each family, with its sampling grid.

    Above: the input, and on it the lines x = const and y = const of the output. Below: the output,
    where those lines are straight again.
    """
    size = image.shape[-1]
    fig = figure_page(250, "The transformer families", "Above: the input, and the grid at which it "
                      "is sampled. Below: the output, where that grid is straight again.",
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


@own_style()
def diagram(image: Tensor) -> Page:
    """How a spatial transformer works, on an image (C, S, S), uint8, turned: the paper's figure 2.

    Theta, the grid and the output are real: they turn the image back and come a little nearer.
    """
    width, height = WIDTH / 100, 3.5
    fig = figure_page(350, "A spatial transformer", "It predicts where to read its input, samples "
                      "it there, and hands the result to the classifier.", w_pad=0, h_pad=0)
    ax = fig.subplots()
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    size, family = image.shape[-1], FAMILIES["similarity"]
    turn = family.theta(torch.tensor([[-0.45, 0, 0, 0]]))
    turned = sample(image[None] / 255, family.grid_of(turn, size), "reflection", "bicubic")
    theta = family.theta(torch.tensor([[0.45, -0.3, 0, 0]]))
    before, after = (ax.inset_axes((left, 0.35, 1.5, 1.5), transform=ax.transData)
                     for left in (0.2, 4.85))
    show(before, turned[0])
    draw_region(before, region(family, theta)[0], lines=5, top=True)
    show(after, sample(turned, family.grid_of(theta, size))[0])
    for x, y, text in ((0.95, 2.6, "localization\nnetwork"), (4.05, 2.6, "grid\ngenerator"),
                       (4.05, 1.1, "sampler"), (7.3, 1.1, "classifier")):
        ax.add_patch(FancyBboxPatch((x - 0.5, y - 0.25), 1, 0.5, boxstyle="round,pad=0.05",
                                    facecolor="#E8F1F8", edgecolor=BLUE))
        ax.text(x, y, text, ha="center", va="center", fontsize=10)
    rows = "\n".join(" ".join(f"{value:5.2f}" for value in row) for row in theta[0].tolist())
    ax.text(2.5, 2.6, rows, ha="center", va="center", fontsize=9, family="DejaVu Sans Mono")
    for x, y, text in ((0.95, 0.18, "input, and the grid on it"), (5.6, 0.18, "output"),
                       (2.5, 2.95, "theta"), (3.35, 1.85, "sampling grid"), (2.55, 1.22, "input")):
        ax.text(x, y, text, ha="center", va="center", fontsize=9, color=GREY)
    arrow = dict(arrowstyle="-|>", linewidth=1.3, shrinkA=0, shrinkB=0)
    for start, end in (((0.95, 1.88), (0.95, 2.3)), ((1.52, 2.6), (1.85, 2.6)),
                       ((3.2, 2.6), (3.48, 2.6)), ((4.05, 2.3), (4.05, 1.4)),
                       ((1.75, 1.1), (3.48, 1.1)), ((4.62, 1.1), (4.82, 1.1)),
                       ((6.4, 1.1), (6.73, 1.1))):
        ax.annotate("", end, start, arrowprops=arrow | dict(color="black"))
    ax.annotate("", (0.95, 2.9), (0.95, 3.32),
                arrowprops=arrow | dict(color=RED, linestyle="--"))
    ax.plot([7.3, 7.3, 0.95], [1.42, 3.3, 3.3], color=RED, linestyle="--", linewidth=1.3)
    ax.text(4.05, 3.3, "the loss's gradient flows back through every step, and trains the "
            "localization network", ha="center", va="center", fontsize=9, color=RED,
            backgroundcolor="white")
    return fig
