"""A film in a notebook: a slider and a play button, in plain HTML and JavaScript (player.html).

matplotlib's own `to_jshtml` would make 14 MB of 50 epochs; this makes 0.7, as it keeps the small
pictures.
"""

import base64
import html
import io
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from .style import BLUE, RED, image_of, notebook_png, rgb

TILE = 64  # size of a picture in the film, pixels
TEMPLATE = Path(__file__).with_name("player.html")


class Player:
    """A film with a slider and a play button: HTML that needs no kernel, widgets or network.

    Where scripts are taken out (GitHub, a notebook not trusted) the last frame is left, as a plain
    picture; where HTML is not shown at all, the same as image/png.
    """

    def __init__(self, film):
        self.film = film
        self.alt = ": ".join(film.describe(film.frames[-1]))
        self.last, _ = notebook_png(film.picture(), self.alt)

    def _repr_html_(self) -> str:
        film, frames = self.film, self.film.frames
        content = dict(
            kind=film.kind,
            labels=[film.classes[label] for label in film.labels],
            images=_sprite([rgb(film.images)]),
            warped=_sprite([frame.warped for frame in frames]),
            frames=[dict(epoch=frame.epoch, words=film.describe(frame),
                         findings="\n".join(frame.findings),
                         predictions=[[film.classes[p], p == t]
                                      for p, t in zip(frame.predicted, film.labels, strict=True)])
                    for frame in frames],
        )
        parts = dict(
            last=self.last["image/png"], alt=html.escape(self.alt), tile=str(TILE), blue=BLUE,
            red=RED,  # "<" could end the script element from within
            content=json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))
        # in one pass: what is filled in is not searched again
        return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]],
                      TEMPLATE.read_text(encoding="utf-8"))

    def _repr_mimebundle_(self, **_) -> dict[str, str]:
        return {"text/html": self._repr_html_(), **self.last}


def _sprite(columns: list[Tensor]) -> str:
    """A data URI with one column of pictures for each of `columns`, uint8 (N, 3, S, S).

    JPEG with colours as sharp as the rest: a third of a PNG, and no difference to be seen.
    """
    sheet = torch.cat([column.transpose(0, 1).flatten(1, 2) for column in columns], dim=2)
    content = io.BytesIO()
    image_of(sheet).save(content, "jpeg", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
