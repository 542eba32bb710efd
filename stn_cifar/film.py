"""The transformer over the epochs: recorded while `fit` runs, then an animated GIF, a player, or a live view.

Pictures are put together by PIL, not by matplotlib, whose figure of the same strip takes half a second: too much to
draw after each epoch.
"""

import io
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import diagnostics, plots
from .data import Data
from .drawing import ask, short
from .player import TILE, Player, encoded, image_of

SURVEYED = 250  # test images that the bands and the verdict are of: enough for quartiles, and soon done
COLUMNS, STEP = 10, 76  # tiles a row; their distance, pixels: room for "✗ automobile"
MARGIN, HEADER, BLOCK = 40, 54, 184  # left of the tiles, above them, height of one row of pairs; pixels
MOST = 60  # frames in a GIF or a player; of longer runs, as many epochs evenly spread
PAUSE = 2  # seconds between two drawings of a live view, each of which takes a quarter of one


class Frame(NamedTuple):
    """The transformer after one epoch."""

    epoch: int  # 0: untrained
    seen: Tensor  # (N, C, S', S') uint8: what the classifier saw of the film's images
    predicted: list[int]  # (N) classes
    note: str  # accuracy so far, in words
    bands: dict[str, list[float]]  # as diagnostics.quantiles gives them, over SURVEYED test images
    verdict: list[str]  # as diagnostics.verdict gives it; none of an untrained model, or one without transformer


class Film:
    """Records what `model` makes of `count` fixed test images of each class; an `on_epoch_end` for `fit`.

    Made before training, with the untrained model, which is frame 0. Recording takes some 35 ms an epoch on one core.
    """

    def __init__(self, model, data: Data, count: int = 1):
        picks = plots.first_of_each_class(data.test, len(data.classes), count + 1)[:, 1:].T.flatten()
        self.images, self.labels = data.test.images[picks], data.test.labels[picks].tolist()  # uint8 (N, C, S, S)
        self.surveyed = data.test.images[:SURVEYED]
        self.classes, self.title = data.classes, plots.title_of(model.config, data)
        self.frames: list[Frame] = []
        self(model, [])

    def __call__(self, model, history: list[dict]) -> None:
        """Add a frame for the epochs in `history`, once: a second call for the same epoch adds none."""
        if self.frames and self.frames[-1].epoch == len(history):
            return
        answers = ask(model, self.images)
        survey = diagnostics.survey(model, self.surveyed)
        verdict = diagnostics.verdict(survey) if history and model.config.stn else []  # nothing to judge yet, or at all
        self.frames.append(Frame(len(history), (255 * answers.seen).round().to(torch.uint8),
                                 answers.probabilities.argmax(1).tolist(), _note(history),
                                 diagnostics.quantiles(survey), verdict))

    @property
    def epochs(self) -> list[int]:
        """The epochs recorded, 0 first; after a resumed run those since it was resumed."""
        return [frame.epoch for frame in self.frames]

    @property
    def bands(self) -> list[dict[str, list[float]]]:
        """For each of `epochs` the quantiles over the test images, for `plots.theta_bands`."""
        return [frame.bands for frame in self.frames]

    def describe(self, frame: Frame) -> tuple[str, str]:
        """Heading and text of a frame: what stands in its picture, for those who do not see it too."""
        right = sum(p == t for p, t in zip(frame.predicted, self.labels, strict=True))
        return (f"{self.title} · {f'epoch {frame.epoch}' if frame.epoch else 'untrained'}",
                f"{frame.note}{right} of these {len(self.labels)} test images named rightly")

    def picture(self, number: int = -1) -> Image.Image:
        """Frame `number` as a picture 800 pixels wide: each test image above what the classifier sees of it."""
        frame = self.frames[number]
        heading, words = self.describe(frame)
        rows = -(-len(self.labels) // COLUMNS)
        picture = Image.new("RGB", (MARGIN + COLUMNS * STEP, HEADER + rows * BLOCK + 8), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((4, 4), heading, "black", _font(16, bold=True))
        draw.text((4, 27), words, plots.GREY, _font(13))
        for k, (before, after) in enumerate(zip(self.images, frame.seen, strict=True)):
            left, top = MARGIN + k % COLUMNS * STEP, HEADER + k // COLUMNS * BLOCK
            if k % COLUMNS == 0:
                draw.text((4, top + 42), "image", plots.GREY, _font(11))
                draw.text((4, top + 42 + STEP), "seen", plots.GREY, _font(11))
            right = frame.predicted[k] == self.labels[k]
            draw.text((left, top), short(self.classes[self.labels[k]]), "black", _font(11))
            picture.paste(_tile(before), (left, top + 17))
            picture.paste(_tile(after), (left, top + 17 + STEP))
            draw.text((left, top + 10 + 2 * STEP), f"{'✓' if right else '✗'} {short(self.classes[frame.predicted[k]])}",
                      plots.BLUE if right else plots.RED, _font(11))
        if frame.epoch:  # how far the film is
            end = picture.width * frame.epoch // self.frames[-1].epoch
            draw.rectangle((0, picture.height - 4, end, picture.height), fill=plots.BLUE)
        return picture

    def gif(self, path: str | Path, milliseconds: int = 200, pause: int = 3000) -> None:
        """Write the film to `path`: a frame each `milliseconds`, the first for a second, the last for `pause`."""
        pictures = [self.picture(number) for number in self.numbers()]
        # One palette for all frames, so what stands still does not flicker, made of the first, the middle and the last;
        # by coverage, which keeps white white. Dithering would be noise on squares this large, and twice the bytes.
        palette = _above([pictures[0], pictures[len(pictures) // 2], pictures[-1]]).quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=5)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
        durations = [1000, *[milliseconds] * (len(pictures) - 2), pause][-len(pictures):]
        pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)

    def player(self) -> Player:
        """The film for a notebook: a slider over the epochs, and a button to play them."""
        return Player(self)

    def numbers(self) -> list[int]:
        """Numbers of all frames, or of MOST evenly spread ones, first and last among them."""
        last = len(self.frames) - 1
        count = min(len(self.frames), MOST)
        return [round(k * last / max(1, count - 1)) for k in range(count)]


def _note(history: list[dict]) -> str:
    """The last epoch's accuracy in words: of validation where there is one, else of training, dropout on."""
    if not history:
        return ""
    kind, word = ("val", "validation") if "val_accuracy" in history[-1] else ("train", "training")
    return f"{word} accuracy {history[-1][f'{kind}_accuracy']:.1%}, "


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of matplotlib's figures, which it brings along; it has the check mark and the cross."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _tile(pixels: Tensor) -> Image.Image:
    """`pixels`, uint8 (C, S, S), TILE wide: averaged where they are more, as crisp squares where they are fewer."""
    return image_of(pixels).resize((TILE, TILE), Image.Resampling.BOX)


def _above(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width, one above the other."""
    whole = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


class Live:
    """An `on_epoch_end` for `fit` in a notebook: records `film` and redraws, in place, the strip and the curves.

    Below them stands what `diagnostics.verdict` says, in words. Stopping the cell keeps what was drawn. Where epochs
    take less than PAUSE, as on a GPU, not all of them are drawn; the last one is, and one that comes a second time.
    """

    def __init__(self, film: Film):
        self.film = film
        self.pictures = self.words = None
        self.draw([])

    def __call__(self, model, history: list[dict]) -> None:
        """Record and draw; call it once more after `fit`, for a run that was stopped, or was complete already."""
        again = self.film.frames[-1].epoch == len(history)
        self.film(model, history)
        if again or len(history) == model.config.epochs or time.monotonic() > self.drawn + PAUSE:
            self.draw(history)

    def draw(self, history: list[dict], test_accuracy: float | None = None) -> None:
        """Draw the film's last frame, and the curves of `history`, with the test accuracy once it is known."""
        from IPython.display import display  # a notebook has it, and nothing else in the package needs it
        frame = self.film.frames[-1]
        curves = plots.curves(history, f"{self.film.title} · epoch {len(history)}", test_accuracy)
        content = io.BytesIO()
        curves.savefig(content)
        picture = _above([self.film.picture(), Image.open(content).convert("RGB")])
        bundle = {"image/png": encoded(picture), "text/plain": ": ".join(self.film.describe(frame))}
        # the size told ahead, so that the page stays still
        about = {"image/png": dict(width=picture.width, height=picture.height, alt=bundle["text/plain"])}
        words = {"text/plain": "\n".join(frame.verdict) or "nothing to warn of"}
        if self.pictures is None:
            self.pictures = display(bundle, raw=True, metadata=about, display_id=True)
            self.words = display(words, raw=True, display_id=True)
        else:
            self.pictures.update(bundle, raw=True, metadata=about)
            self.words.update(words, raw=True)
        self.drawn = time.monotonic()
