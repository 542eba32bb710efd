"""What is told of records: results/README.md and speed.md, README's numbers and links, figures."""

import base64
import json
import os
import re
import subprocess
from pathlib import Path

from stn_cifar import plots
from stn_cifar.files import write_whole

from . import figures, pictures, published, records, studies, tables
from .bench import speed
from .study import Study

README, IMAGES = Path("README.md"), Path("images")
NOTEBOOK = Path("notebooks/stn_cifar10.ipynb")

INTRODUCTION = """\
# Results

Every table and number here is made from the records beside this page by
`python -m stn_cifar report`; each run is one file, which holds its whole config.

- Test accuracy is that of the last epoch, measured once; training accuracy is measured without
  dropout and augmentation, where images are distorted on the first 10,000, in new poses. ± is the
  sample standard deviation over n seeds.
- *Points above* an arm: the difference to it at the same budget, paired by seed; there ± is the
  half-width of the 95 % interval (Student's t).
- An arm of one seed is a *pilot*, and stands apart.
- Test-time augmentation is another measurement, told apart from the single view's: the classes'
  mean probability over the transformer's likeliest *poses*, or, without a transformer, over
  *rotated views*; *flip TTA*, the mean logits of what the transformer hands on and of its mirror
  image (aligned once, classified twice). It is compared with an arm's single view where it costs no
  more arithmetic than that, and with an arm's flip TTA. *True pose* is an oracle: every image's
  pose undone exactly, by resampling it as a transformer would. A network that has none was trained
  on images resampled once, and loses by it.
- MFLOP: one image, forwards. Chance is 10 % accuracy. Where images are turned by any angle, chance
  is a rotation error of 90 degrees, 16.7 % of them within 30 degrees, 44.4 % within 20 degrees
  modulo 90. By up to 45 degrees (rts) 66.7 % are within 30 degrees as they come, by up to 60
  (glyphs) 50 %; clutter turns nothing.

Words: *STN*, a spatial transformer network (Jaderberg et al. 2015,
[1506.02025](https://arxiv.org/abs/1506.02025)); *by the class loss*, its transformer learns from
the class labels alone; *pose-supervised*, it is told in training how each picture was turned;
*teacher forcing*, the classifier is shown training images with their true pose undone, ever more
seldom; *p4*, group convolutions over quarter turns; *modulo 90°*, the transformer finds the angle
but for quarter turns, so its rotation error is 90 degrees in the median; *suite*, the test images
under another distortion, *rotation45* and *rotation90* turned by up to so many degrees to either
side, *nearest*, *bilinear* and *4 x 4 samples* turned by any angle with another filter than the
bicubic one of training; *disc*, upright images in the disc in which turned ones are shown; *share
of the upright ceiling*, test accuracy over that of the same classifier trained and tested in
*disc*; *mean of 8 angles*, all images turned by each multiple of 45°; *class changes at 45°*, the
share of images that another class is predicted for when the input is turned by 45°; *logits
change*, by which share of their norm; *half-width*, half a picture's width.

Related work, with what it measured: learned canonicalization before pretrained networks, Kaba et
al. 2023 ([2211.06489](https://arxiv.org/abs/2211.06489)) and Mondal et al. 2023
([2310.01647](https://arxiv.org/abs/2310.01647): rotated CIFAR-10 with ImageNet weights at 224
pixels); artificial mental rotation, Tuggener et al. 2023
([2311.08525](https://arxiv.org/abs/2311.08525): 360 angle classes on a frozen backbone, then turned
back: the nearest relative of our pose supervision); Cohen & Welling 2016
([1602.07576](https://arxiv.org/abs/1602.07576): group convolutions over quarter turns).
"""
FIGURES = {  # the end of a figure's name -> what it shows
    "angle": "Accuracy of each arm against the angle by which all test images are turned",
    "error": "Histogram of the rotation error that each arm's transformer leaves"}
# [84.1 %](results/README.md#rotation "p4 CNN, 32 epochs: test accuracy"): the title names a number
NUMBER = re.compile(r'\[[^]\n]*\]\(results/([\w.#-]+) "([^"\n]+): ([^":\n]+)"\)')
COLAB = re.compile(r"(<!-- colab: [^\n]*? -->)(.*?)(<!-- end of colab -->)", re.DOTALL)


def write_report(readme: Path = README, results: Path = records.RESULTS,
                 notebook: Path = NOTEBOOK, images: Path = IMAGES) -> list[Path]:
    """Bring all that is told of the records up to date; returns the files that it concerns.

    Nothing is written before everything has been made. ValueError where `results` holds no records,
    or README names a number that they do not have.
    """
    pages, drawn = make(*map(Path, (readme, results, notebook, images)))
    for path, text in pages.items():
        _write(path, text)
    for path, figure in drawn.items():
        plots.save(figure, path)
    return [*pages, *drawn]


def make(readme: Path, results: Path, notebook: Path, images: Path) -> tuple[dict, dict]:
    """What `write_report` writes: (path -> text, path -> figure)."""
    found = records.load(results)
    known = {name: studies.STUDIES.get(name) or _undefined(found[name])
             for name in sorted(found, key=_rank)}
    rows = {name: tables.rows_of(this, found[name]) for name, this in known.items()}
    drawn = {name: figures.figures_of(name, this, rows[name]) for name, this in known.items()}
    place = Path(os.path.relpath(images, results)).as_posix()
    shown = {name: {f"{stem}.png": FIGURES[stem.rpartition("-")[2]] for stem in drawn[name]}
                   | {file: told for file, told in pictures.captions(name, this).items()
                      if (images / file).is_file()}
             for name, this in known.items()}
    sections = [section(name, this, rows[name], {f"{place}/{file}": told
                                                 for file, told in shown[name].items()})
                for name, this in known.items()]
    contents = "".join(f"- [{name}](#{name}): {this.question}\n" for name, this in known.items())
    pages = {results / "README.md": "\n".join([INTRODUCTION, contents, *sections])}
    if speeds := speed.load(results / "speed"):
        pages[results / "speed.md"] = speed.page(speeds)
    numbers = speed.numbers(speeds) | {
        (f"README.md#{name}", f"{row.arm}, {row.epochs} epochs", column):
            cell + (" (pilot)" if len(row.runs) == 1 and "%" in cell else "")
        for name, this in known.items() for row in rows[name]
        for column, cell in tables.cells_of(this, row).items()}
    pages[readme] = filled(readme, numbers, colab_links(origin(readme.parent), notebook))
    pages[notebook] = embedded(notebook)
    return pages, {images / f"{stem}.png": figure
                   for each in drawn.values() for stem, figure in each.items()}


def _rank(name: str) -> tuple:
    order = list(studies.STUDIES)
    return (order.index(name) if name in order else len(order), name)


def _undefined(found: list[dict]) -> Study:
    """What stands for a study that is no longer defined: its records are told all the same."""
    arms = {record["arm"]: {} for record in found}
    return Study("This study is no longer defined; its records are kept.", "", arms)


def section(name: str, this: Study, rows: list[tables.Row], shown: dict[str, str]) -> str:
    """A study's part of results/README.md; shown: path of a picture -> what it shows."""
    several = [row for row in rows if len(row.runs) > 1]
    pilots = [row for row in rows if len(row.runs) == 1]
    runs = [record for row in rows for record in row.runs.values()]
    machines, precisions, threads = (
        " or ".join(sorted({str(record[key]) for record in runs if record.get(key) is not None}))
        for key in ("machine", "precision", "threads"))
    parts = [f"## {name}", f"**{this.question}**", this.protocol,
             tables.study_tables(this, several, rows)]
    if pilots:
        parts += ["Pilots, one seed each:", tables.study_tables(this, pilots, rows)]
    if this.published:
        table = tables.markdown(published.COLUMNS, this.published)
        parts += ["Published elsewhere, from scratch, as told there:", table]
    if this.by_class and (by_class := tables.class_table(several)):
        parts += ["By class, percent:", by_class]
    parts += [f"![{told}.]({path})" for path, told in shown.items()]
    again = f" Once more: `python -m stn_cifar study {name}`." if name in studies.STUDIES else ""
    parts.append(f"{len(runs)} runs, in [{name}/]({name}/): {tables.plain(machines)}; "
                 f"{tables.plain(precisions)}; threads: {threads or 'not recorded'}.{again}")
    return "\n\n".join(filter(None, parts)) + "\n"


# ---- README --------------------------------------------------------------------------------------


def filled(readme: Path, numbers: dict[tuple[str, str, str], str], links: str) -> str:
    """README's text with its numbers, each a link whose title names it, and the notebook's links.

    ValueError where a number is named that there is none of, or the links' markers are missing.
    """
    def number(match):
        place, row, column = match.groups()
        if (cell := numbers.get((place, row, column), "-")) == "-":
            close = sorted({key[1] for key in numbers if key[0] == place})
            raise ValueError(f"readme: {readme} names {match[2]!r}: {column!r} of results/{place}, "
                             f"which no record has. Rows there: {'; '.join(close) or 'none'}")
        return f'[{cell}](results/{place} "{row}: {column}")'

    text = readme.read_bytes().decode("utf-8")
    if not COLAB.search(text):
        raise ValueError(f"readme: {readme} lacks the markers '<!-- colab: ... -->' and "
                         "'<!-- end of colab -->'")
    text = COLAB.sub(lambda match: f"{match[1]}\n{links}\n{match[3]}", text, count=1)
    return NUMBER.sub(number, text)


def origin(folder: Path) -> str | None:
    """"owner/name" of the checkout's remote `origin` where that is on GitHub, else None.

    Only the two names are taken: a user or a token in the address goes nowhere.
    """
    address = _git(folder, "remote", "get-url", "origin")
    match = re.fullmatch(r"(?:https://(?:[^@/\s]+@)?|ssh://git@|git@)github\.com[/:]"
                         r"([\w-]+/[\w.-]+?)(?:\.git)?/?", address)
    return match and match[1]


def _git(folder: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", folder, *arguments], text=True, capture_output=True,
                              timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, no repository, no such remote
        return ""


def colab_links(repository: str | None, notebook: Path = NOTEBOOK) -> str:
    """README's line on opening the notebook elsewhere; a sentence where no address is public."""
    if repository is None:
        return "In Colab: *File*, *Upload notebook*, then *Runtime*, *Run all*."
    page = f"github/{repository}/blob/main/notebooks/{notebook.name}"
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    return (f"[![Open in Colab]({badge})](https://colab.research.google.com/{page}), or "
            f"[read it on nbviewer](https://nbviewer.org/{page})")


def embedded(notebook: Path) -> str:
    """The notebook with the pictures that its texts name: ![...](... "images/NAME.png").

    As data URIs: a notebook opened in Colab comes without the files beside it, and Colab shows no
    attachments (colabtools#3836).
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))

    def picture(match):
        data = (notebook.resolve().parent.parent / match[2]).read_bytes()
        return f'{match[1]}data:image/png;base64,{base64.b64encode(data).decode()} "{match[2]}")'

    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            source = re.sub(r'(!\[[^]]*\]\()\S+ "(images/[^"]+\.png)"\)', picture,
                            "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a page whole, with the line ends that it has; one that is up to date is left alone."""
    old = path.read_bytes() if path.exists() else b""
    text = text.replace("\r\n", "\n")
    content = (text.replace("\n", "\r\n") if b"\r\n" in old else text).encode("utf-8")
    if content != old:
        write_whole(path, content)
