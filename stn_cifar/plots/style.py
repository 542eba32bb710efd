"""What figures share: a style of their own, the page, images in true colours, light PNG files."""

import base64
import io
import textwrap
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..files import write_whole

# Okabe and Ito's colours, told apart with any colour vision
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"
SKY, PURPLE = "#56B4E9", "#CC79A7"
WIDTH, HEADER = 800, 62  # of a page, and of title and note on it: pixels, as all lengths here
FITS = dict(title=76, note=112, below=122)  # letters on a line
# of arms, told apart by line and marker too
STYLES = [dict(color=BLUE, marker="o"), dict(color=RED, marker="s", linestyle="--"),
          dict(color=GREEN, marker="^", linestyle="-."),
          dict(color=ORANGE, marker="D", linestyle=":"),
          dict(color=GREY, marker="v", linestyle=(0, (6, 1, 1, 1))), dict(color=SKY, marker="P"),
          dict(color=PURPLE, marker="X", linestyle="--"),
          dict(color="black", marker="*", linestyle="-.")]
# of predictions: right and wrong differ by sign and weight, not by colour alone
LOOKS = {"✓": dict(color=BLUE), "✗": dict(color=RED, fontweight="bold", fontsize=7.3)}
VISIBLE = 5  # grey levels of 256: smaller changes of a colour are not seen

# matplotlib's defaults, whatever the user's settings are, and these. Class names are data: "$" in
# one begins no formula.
own_style = partial(matplotlib.style.context, ["default", {
    "font.family": ["DejaVu Sans"], "text.parse_math": False, "figure.dpi": 100,
    "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "axes.prop_cycle": cycler(color=[BLUE]),  # of bars
}])


class StyledFigure(Figure):
    """A Figure in this package's style whatever the user's is; in a notebook, a light PNG.

    matplotlib reads its settings again when it draws and saves: so the style comes along.
    """

    def draw(self, renderer) -> None:
        with own_style():
            super().draw(renderer)

    def savefig(self, *args, **options) -> None:
        with own_style():
            super().savefig(*args, **options)

    def _ipython_display_(self) -> None:  # it comes before what %matplotlib inline would do
        from IPython.display import display
        data, metadata = notebook_png(self, self.texts[0].get_text())
        display(data, raw=True, metadata=metadata)


def titled_figure(height: int, title: str, note: str, below: Sequence[str] = (),
                  **layout) -> StyledFigure:
    """A figure with `title`, `note` (what to look for), and `height` pixels for what is drawn.

    below: texts under it. pyplot does not know of it, so that a notebook shows it once. Draw on it
    within `own_style()`.
    """
    lines = [line for text in below
             for line in textwrap.wrap(text, FITS["below"], subsequent_indent="    ")]
    foot = 18 * len(lines) + 12 * bool(lines)
    whole = HEADER + height + foot
    fig = StyledFigure(figsize=(WIDTH / 100, whole / 100), layout="constrained")
    sizes = [size * min(1, FITS[kind] / max(1, len(text)))
             for size, kind, text in ((12, "title", title), (9.5, "note", note))]
    fig.text(0.01, 1 - 15 / whole, title, fontsize=sizes[0], fontweight="bold", va="center")
    fig.text(0.01, 1 - 42 / whole, note, fontsize=sizes[1], color=GREY, va="center")
    for number, line in enumerate(lines):
        fig.text(0.01, (foot - 15 - 18 * number) / whole, line, fontsize=9, va="center")
    fig.get_layout_engine().set(rect=(0, foot / whole, 1, height / whole), **layout)
    return fig


def image_grid(title: str, note: str, images: Sequence[Tensor | None], columns: int, tile: int,
                 captions: Sequence[str] = (), *, gap: int = 4, together: int = 1, left: int = 8,
                 above: int = 18, under: int = 0, below: Sequence[str] = (),
                 interpolation: str = "antialiased") -> tuple[StyledFigure, Axes, list]:
    """A figure of `images`, lines of `columns`, each exactly `tile` pixels wide.

    So pixels of an image become squares of one size, and its PNG stays small. None leaves a place
    empty. captions: above the images. together: how many stand side by side before a gap. above,
    under: pixels for texts above and under each line. below: as titled_figure has it. Returns the
    figure, its axes, whose coordinates are pixels from the top, and the images' upper left corners.
    """
    line = above + tile + under
    fig = titled_figure(line * -(-len(images) // columns), title, note, below)
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(fig.bbox.height, 0))
    ax.axis("off")
    corners = []
    for k, (image, caption) in enumerate(zip_longest(images, captions, fillvalue="")):
        if image is None:
            continue
        x = left + k % columns * tile + gap * (k % columns // together)
        y = HEADER + k // columns * line + above
        # "antialiased": "auto", which came with matplotlib 3.10, under its older name
        squares = interpolation == "antialiased" and tile % image.shape[-1] == 0
        ax.imshow(rgb(image).permute(1, 2, 0).numpy(), extent=(x, x + tile, y + tile, y),
                  interpolation="nearest" if squares else interpolation)
        ax.text(x + tile / 2, y - 4, caption, ha="center",
                **dict(fontsize=8) | LOOKS.get(caption[:1], {}))
        corners.append((x, y))
    return fig, ax, corners


def rgb(images: Tensor) -> Tensor:
    """`images` (..., C, H, W), uint8 or float in [0, 1], as shown: uint8 (..., 3, H, W).

    NaN is black. One channel is grey; of two, four or more the first is shown.
    """
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = (255 * images.float().nan_to_num(0).clamp(0, 1)).round().to(torch.uint8)
    if images.shape[-3] == 3:
        return images
    return images.narrow(-3, 0, 1).expand(*images.shape[:-3], 3, *images.shape[-2:])


def show(ax: Axes, image: Tensor) -> None:
    """One image (C, H, W), as `rgb` takes it, in axes of its own; coordinates as in transforms.py.
    """
    ax.imshow(rgb(image).permute(1, 2, 0).numpy(), extent=(-1, 1, 1, -1))
    ax.autoscale(False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def short(name: str, length: int = 10) -> str:
    """A class name that fits above a small picture."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[:length - 1] + "…"


def label_prediction(name: str, correct: bool) -> str:
    """A prediction with a check mark or a cross, for `image_grid` to colour it."""
    return f"{'✓' if correct else '✗'} {short(name)}"


def image_of(picture: Figure | Tensor) -> Image.Image:
    """A PIL image of a figure, or of pixels, uint8 (3, H, W)."""
    if isinstance(picture, Tensor):
        return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    content = io.BytesIO()
    picture.savefig(content, format="png", pil_kwargs=dict(compress_level=0))
    return Image.open(content).convert("RGB")


def light_png(picture: Figure | Image.Image) -> bytes:
    """A PNG of a figure or an image: with a palette of 256 colours, unless that would be seen."""
    picture = picture if isinstance(picture, Image.Image) else image_of(picture)
    light = picture.quantize(256, dither=Image.Dither.NONE)
    change = np.abs(np.subtract(picture, light.convert("RGB"), dtype=np.int16))
    content = io.BytesIO()
    (light if np.quantile(change, 0.99) < VISIBLE else picture).save(content, "png")
    return content.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write `figure` as a light PNG, whole or not at all; OSError, with the path, if that fails."""
    write_whole(path, light_png(figure))


def notebook_png(picture: Figure | Image.Image, alt: str) -> tuple[dict, dict]:
    """(data, metadata) of a light PNG for IPython's display; `alt`: for those who do not see it."""
    content = light_png(picture)
    width, height = Image.open(io.BytesIO(content)).size
    # the size comes along, so that the page stays still while it loads
    return ({"image/png": base64.b64encode(content).decode(), "text/plain": alt},
            {"image/png": dict(width=width, height=height, alt=alt)})
