"""The transformer over the epochs: recorded while `fit` runs; then a GIF, a player, a live view.

Pictures are put together by PIL: matplotlib would take half a second for each.
"""

import io
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .. import diagnostics
from ..data import Data
from ..files import write_whole
from ..spatial_transformer import IdentityTransformer
from .curves import curves
from .images import examples, predict, split_of, title_of
from .player import TILE, Player
from .style import BLUE, GREY, LOOKS, image_of, label_prediction, notebook_png, rgb, short

MEASURED = 250  # images that bands and findings are of: enough for quartiles, and soon done
SPLITS = ("val", "test", "train")  # whose images are filmed: the first of these that there is
COLUMNS, STEP = 10, 76  # tiles a row; their distance, pixels: room for "✗ automobile"
MARGIN, HEADER, BLOCK = 40, 54, 184  # left of the tiles, above them, height of a row of pairs
PAUSE = 2  # seconds between two drawings of a live view, each of which takes a quarter of one


class Frame(NamedTuple):
    """The transformer after one epoch."""

    epoch: int  # 0: untrained
    warped: Tensor  # (N, 3, S', S') uint8: the classifier's input for each of the film's images
    predicted: list[int]  # (N) classes
    note: str  # accuracy so far, in words
    findings: list[str]  # as diagnostics.findings gives them; none if untrained or without one


class Film:
    """Records what `model` makes of the first `count` images of each class; an `on_epoch_end`.

    Images are of the validation split where there is one, else test images: they are shown and
    counted, and no choice depends on them. Made before training: the untrained model is frame 0.
    Recording takes some 35 ms an epoch on one core.
    """

    def __init__(self, model, data: Data, count: int = 1):
        chosen = examples(data, count, SPLITS)
        self.images, self.labels, self.kind = chosen.images, chosen.labels, chosen.kind
        self.measured = split_of(data, SPLITS)[0].images[:MEASURED]
        self.classes, self.title = data.classes, title_of(model.config, data)
        self.frames: list[Frame] = []
        self.epochs: list[int] = []  # of the frames, 0 first; of a resumed run those since then
        self.bands: list[dict[str, list[float]]] = []  # of each frame, for `plots.theta_bands`
        self(model, [])

    def __call__(self, model, history: list[dict]) -> None:
        """Add a frame for the epochs in `history`, once: a second call for an epoch adds none."""
        if self.epochs[-1:] == [len(history)]:
            return
        warped, probabilities = predict(model, self.images)
        measured = diagnostics.statistics(model, self.measured)
        judged = history and not isinstance(model.transformer, IdentityTransformer)
        self.frames.append(Frame(len(history), rgb(warped), probabilities.argmax(1).tolist(),
                                 _note(history), diagnostics.findings(measured) if judged else []))
        self.epochs.append(len(history))
        self.bands.append(diagnostics.quantiles(measured))

    def describe(self, frame: Frame) -> tuple[str, str]:
        """Heading and text of a frame: what stands in its picture, also for who cannot see it."""
        right = sum(p == t for p, t in zip(frame.predicted, self.labels, strict=True))
        aside = " (shown, not used)" * (self.kind == "test")
        return (f"{self.title} · {f'epoch {frame.epoch}' if frame.epoch else 'untrained'}",
                f"{frame.note}{right} of these {len(self.labels)} {self.kind} images{aside} "
                "predicted correctly")

    def picture(self, number: int = -1) -> Image.Image:
        """Frame `number`, 800 pixels wide: each image above the classifier's input made of it."""
        frame = self.frames[number]
        heading, words = self.describe(frame)
        rows = -(-len(self.labels) // COLUMNS)
        picture = Image.new("RGB", (MARGIN + COLUMNS * STEP, HEADER + rows * BLOCK + 8), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((4, 4), heading, "black", _font(16, bold=True))
        draw.text((4, 27), words, GREY, _font(13))
        for k, images in enumerate(zip(rgb(self.images), frame.warped, strict=True)):
            left, top = MARGIN + k % COLUMNS * STEP, HEADER + k // COLUMNS * BLOCK
            for row, (image, word) in enumerate(zip(images, ("image", "input"), strict=True)):
                # averaged where there are more pixels, crisp squares where there are fewer
                tile = image_of(image).resize((TILE, TILE), Image.Resampling.BOX)
                picture.paste(tile, (left, top + 17 + row * STEP))
                if k % COLUMNS == 0:
                    draw.text((4, top + 42 + row * STEP), word, GREY, _font(11))
            truth, predicted = self.labels[k], frame.predicted[k]
            words = label_prediction(self.classes[predicted], predicted == truth)
            draw.text((left, top), short(self.classes[truth]), "black", _font(11))
            draw.text((left, top + 10 + 2 * STEP), words, LOOKS[words[0]]["color"], _font(11))
        if frame.epoch:  # how far the film is
            end = picture.width * frame.epoch // self.frames[-1].epoch
            draw.rectangle((0, picture.height - 4, end, picture.height), fill=BLUE)
        return picture

    def gif(self, path: str | Path) -> None:
        """Write the film: a frame each 0.2 s, the first for 1 s, the last for 3."""
        pictures = [self.picture(number) for number in range(len(self.frames))]
        # One palette for all frames, so what stands still does not flicker, made of the first, the
        # middle and the last; by coverage, which keeps white white. Dithering would be noise on
        # squares this large, and twice the bytes.
        palette = _above(pictures[0], pictures[len(pictures) // 2], pictures[-1]).quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=5)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE)
                    for picture in pictures]
        durations = [1000, *[200] * (len(pictures) - 2), 3000][-len(pictures):]
        content = io.BytesIO()
        pictures[0].save(content, format="GIF", save_all=True, append_images=pictures[1:],
                         duration=durations, loop=0)
        write_whole(path, content.getvalue())

    def player(self) -> Player:
        """The film for a notebook: a slider over the epochs, and a button to play them."""
        return Player(self)


def _note(history: list[dict]) -> str:
    """The last epoch's accuracy: of validation where there is one, else of training, dropout on."""
    if not history:
        return ""
    kind = "validation" if "val_accuracy" in history[-1] else "training"
    accuracy = history[-1]["val_accuracy" if kind == "validation" else "train_accuracy"]
    return f"{kind} accuracy {accuracy:.1%}, "


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of the figures, which matplotlib brings along; it has the check mark and cross."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _above(*pictures: Image.Image) -> Image.Image:
    """Pictures of one width, one above the other."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))


class Live:
    """An `on_epoch_end` for `fit` in a notebook: records `film`, redraws its strip and the curves.

    Below them stand the findings. Stopping the cell keeps what was drawn. Where epochs take less
    than PAUSE not all of them are drawn; the last one is, and one that comes a second time.
    """

    def __init__(self, film: Film):
        self.film = film
        self.pictures = self.words = None
        self.draw([])

    def __call__(self, model, history: list[dict]) -> None:
        """Record and draw; call it again after `fit`, for a run that was stopped or complete."""
        again = self.film.epochs[-1] == len(history)
        self.film(model, history)
        last = len(history) == getattr(model.config, "epochs", None)
        if again or last or time.monotonic() > self.drawn + PAUSE:
            self.draw(history)

    def draw(self, history: list[dict], test_accuracy: float | None = None) -> None:
        """Draw the film's last frame, and curves, with the test accuracy once it is known."""
        from IPython.display import display  # a notebook has it; nothing else needs it
        frame = self.film.frames[-1]
        lines = curves(history, f"{self.film.title} · epoch {len(history)}", test_accuracy)
        picture, about = notebook_png(_above(self.film.picture(), image_of(lines)),
                                      ": ".join(self.film.describe(frame)))
        words = {"text/plain": "\n".join(frame.findings) or "nothing to warn of"}
        if self.pictures is None:
            self.pictures = display(picture, raw=True, metadata=about, display_id=True)
            self.words = display(words, raw=True, display_id=True)
        else:
            self.pictures.update(picture, raw=True, metadata=about)
            self.words.update(words, raw=True)
        self.drawn = time.monotonic()
