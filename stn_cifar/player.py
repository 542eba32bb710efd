"""A film in a notebook: a slider and a play button, in plain HTML and JavaScript.

matplotlib's own `to_jshtml` would make 14 MB of 50 epochs; this makes 0.7, as it keeps the small pictures.
"""

import base64
import html
import io
import json

import torch
from PIL import Image
from torch import Tensor

from .drawing import BLUE, RED

TILE = 64  # size of a picture in the film, pixels


class Player:
    """A film with a slider and a play button: HTML that needs no kernel, no widgets and no other address.

    Where scripts are taken out (GitHub, a notebook not trusted) the last frame is left, as a plain picture; where HTML
    is not shown at all, the same as image/png.
    """

    def __init__(self, film):
        self.film, self.last = film, encoded(film.picture())
        self.alt = ": ".join(film.describe(film.frames[-1]))

    def _repr_html_(self) -> str:
        film = self.film
        frames = [film.frames[number] for number in film.numbers()]
        content = dict(
            labels=[film.classes[label] for label in film.labels],
            images=_sprite([film.images.cpu()]),
            seen=_sprite([frame.seen for frame in frames]),
            frames=[dict(epoch=frame.epoch, words=film.describe(frame), verdict="\n".join(frame.verdict),
                         guesses=[[film.classes[p], p == t] for p, t in zip(frame.predicted, film.labels, strict=True)])
                    for frame in frames],
        )
        # "<" could end the script element from within
        return PLAYER.format(
            last=self.last, alt=html.escape(self.alt), tile=TILE, blue=BLUE, red=RED,
            script=SCRIPT, content=json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))

    def _repr_mimebundle_(self, **_) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "image/png": self.last,
                "text/plain": self.alt}


def _sprite(columns: list[Tensor]) -> str:
    """A data URI with one column of pictures for each of `columns`, uint8 (N, C, S, S).

    JPEG with colours as sharp as the rest: a third of a PNG, and no difference to be seen.
    """
    sheet = torch.cat([column.transpose(0, 1).flatten(1, 2) for column in columns], dim=2)  # (C, N S, frames S)
    return "data:image/jpeg;base64," + encoded(image_of(sheet), "jpeg", quality=92, subsampling=0, optimize=True)


def encoded(picture: Image.Image, kind: str = "png", **options) -> str:
    """`picture` as a file, in base64."""
    content = io.BytesIO()
    picture.save(content, format=kind, **options)
    return base64.b64encode(content.getvalue()).decode()


def image_of(pixels: Tensor) -> Image.Image:
    """A PIL image of `pixels`, uint8 (C, H, W), in colour."""
    return Image.fromarray(pixels.cpu().permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())


PLAYER = """<div class="stn-film">
<img src="data:image/png;base64,{last}" alt="{alt}" width="800">
<script type="application/json">{content}</script>
</div>
<style>
.stn-film {{ max-width: 800px; padding: 8px; background: white; color: black; font: 14px/1.4 sans-serif }}
.stn-film p {{ margin: 4px 0 8px }}
.stn-film .controls {{ display: flex; align-items: center; gap: 12px }}
.stn-film .controls button {{ width: 6em }}
.stn-film .controls input {{ flex: 1 }}
.stn-film .controls span {{ width: 8em }}
.stn-film .verdict {{ min-height: 3em; white-space: pre-line }}
.stn-film .pictures {{ display: flex; flex-wrap: wrap; gap: 8px; margin: 12px 0 }}
.stn-film .pictures div {{ width: {tile}px; font-size: 11px; white-space: nowrap }}
.stn-film .pictures i {{ display: block; width: {tile}px; height: {tile}px; margin: 4px 0; image-rendering: pixelated }}
.stn-film .right {{ color: {blue} }}
.stn-film .wrong {{ color: {red} }}
</style>
<script>{script}</script>"""

# Each script wakes all films on the page that are still asleep: so several, or one shown twice, do not clash.
SCRIPT = """
for (const root of document.querySelectorAll(".stn-film:not([data-awake])")) {
  root.dataset.awake = root.dataset.lmSuppressShortcuts = "true";  // keys pressed here are not JupyterLab's, which
  root.onkeydown = (event) => event.stopPropagation();  // would move its cursor; old and new versions
  const film = JSON.parse(root.querySelector("script").textContent), last = film.frames.length - 1;
  const add = (parent, tag, more) => Object.assign(parent.appendChild(document.createElement(tag)), more);
  root.querySelector("img").remove();
  const heading = add(root, "b"), words = add(root, "p"), controls = add(root, "div", {className: "controls"});
  const button = add(controls, "button", {type: "button"});
  const slider = add(controls, "input", {type: "range", max: last, value: last, ariaLabel: "epoch"});
  const epoch = add(controls, "span"), pictures = add(root, "div", {className: "pictures"});
  add(root, "p", {textContent: "Above: the test image. Below: what the classifier sees of it, and takes it for."});
  const verdict = add(root, "div", {className: "verdict"});
  const tile = (parent, sheet, columns) => {
    const tile = add(parent, "i", {role: "img"});
    tile.style.background = `url("${sheet}") 0 0 / ${100 * columns}% ${100 * film.labels.length}%`;
    return tile;
  };
  const rows = film.labels.map((name, row) => {
    const pair = add(pictures, "div", {textContent: name});
    tile(pair, film.images, 1).ariaLabel = `test image: ${name}`;
    pair.lastChild.style.backgroundPositionY = `${-SIZE * row}px`;
    return {seen: tile(pair, film.seen, last + 1), guess: add(pair, "span")};
  });
  const show = (number) => {
    const frame = film.frames[slider.value = number];
    epoch.textContent = slider.ariaValueText = `epoch ${frame.epoch} of ${film.frames[last].epoch}`;
    [heading.textContent, words.textContent] = frame.words;
    verdict.textContent = frame.verdict;
    rows.forEach(({seen, guess}, row) => {
      const [name, right] = frame.guesses[row];
      seen.style.backgroundPosition = `${-SIZE * number}px ${-SIZE * row}px`;
      seen.ariaLabel = `what is classified, after epoch ${frame.epoch}`;
      Object.assign(guess, {className: right ? "right" : "wrong", textContent: `${right ? "✓" : "✗"} ${name}`});
    });
  };
  let timer;
  const pause = () => { timer = clearInterval(timer); button.textContent = "▶ Play"; };
  const next = () => { show(+slider.value + 1); if (+slider.value === last) pause(); };
  button.onclick = () => {
    if (timer) return pause();
    if (+slider.value === last) show(0);
    timer = setInterval(next, 250);
    button.textContent = "⏸ Pause";
  };
  slider.oninput = () => { pause(); show(+slider.value); };
  pause();
  show(last);
}
""".replace("SIZE", str(TILE))
