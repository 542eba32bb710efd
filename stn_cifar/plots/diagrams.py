"""The figure that explains the transformer families."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..sampler import sample
from ..transforms import FAMILIES, Family
from .regions import draw_region, region
from .style import own_style, show, titled_figure

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
