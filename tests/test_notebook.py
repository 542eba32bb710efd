"""The notebook as it is committed, and as people run it: cell by cell, and as a whole."""

import ast
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import IPython.display
import nbformat
import pytest
import torch
from PIL import Image

import stn_cifar
from stn_cifar import Config, Data, Split, diagnostics, plots
from stn_cifar.config import PRESETS
from stn_cifar.data import cifar10, glyphs
from stn_cifar.data.dataset import distorted
from stn_cifar.notebook import single_file

ROOT = Path(__file__).parents[1]
PATH = ROOT / "notebooks" / "stn_cifar10.ipynb"
SETTINGS = ["PRESET", "DATASET", "DATA_ROOT", "EPOCHS", "BATCH_SIZE", "LEARNING_RATE",
            "LOCALIZATION_LR_SCALE", "TRANSFORM", "STN", "SEED", "CHECKPOINT_DIR", "REPO_URL",
            "REF"]


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def code(notebook):
    return code_of(notebook)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose_of(notebook):
    """All Markdown, embedded pictures left out."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return re.sub(r"base64,[\w+/=]+", "", "\n".join(cells))


def outputs_text(cells):
    """All that outputs say in text; pictures within HTML left out."""
    parts = []
    for output in (output for cell in cells for output in cell.outputs):
        data = output.get("data", {})
        html = re.sub(r"base64,[\w+/=]+", "", data.get("text/html", ""))
        parts += [output.get("text", ""), data.get("text/plain", ""), html]
    return "\n".join(parts)


# ---- as committed


def test_settings_are_plain_literals_with_form_fields_in_a_tagged_first_cell(code):
    assert code[0].metadata.tags == ["parameters"]
    lines = code[0].source.splitlines()[1:]
    assert [line.split(" = ")[0] for line in lines] == SETTINGS
    assert all("# @param" in line for line in lines)
    exec(code[0].source, {})  # nothing but literals: needs no import


def test_cells_are_short_and_none_starts_a_chain_of_code_without_prose(notebook):
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= 15, cell.source
            assert max(len(line.partition("  # @param")[0]) for line in lines) <= 100, cell.source
            assert before.cell_type == "markdown", cell.source


def test_metadata_is_what_colab_reads_and_holds_no_widgets(notebook):
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab == {"gpuType": "T4", "provenance": [], "toc_visible": True}
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


def test_outputs_are_of_one_complete_run_without_errors_or_paths_of_a_machine(notebook, code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert "widget" not in " ".join(kind for output in outputs for kind in output.get("data", {}))
    machine = r"(/home|/root|/work|/mnt|/tmp|/Users|[A-Z]:\\\\)"
    assert not re.search(machine, outputs_text(code))
    assert "epoch 50: test accuracy" in outputs_text(code)


def test_it_is_light_enough_for_any_host():
    assert PATH.stat().st_size < 3.5e6


def test_accuracy_shown_is_the_recorded_one(code):
    record = json.loads((ROOT / "results/presets/tutorial-50e-s0.json").read_text())
    assert Config(**record["config"]) == Config.preset("tutorial", dataset="cifar10", seed=0)
    test, train = (record[split]["accuracy"] for split in ("test", "train"))
    assert (f"CIFAR-10 · tutorial (affine) · epoch 50: test accuracy {test:.1%}, "
            f"training accuracy {train:.1%}") in outputs_text(code)


def test_headings_are_in_order(notebook):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose_of(notebook), re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_what_takes_long_is_told_before_it_starts(notebook):
    told = {before.source: cell.source for before, cell in itertools.pairwise(notebook.cells)
            if cell.cell_type == "code" and "fit(" in cell.source}
    assert len(told) == 4
    for prose in told:
        assert re.search(r"minutes|quarter of an hour|half as long|a minute", prose), prose


def test_every_picture_in_the_text_is_described_and_carried_along(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert "<img" not in cell.source
            for described, address in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", cell.source):
                assert len(described) > 20, "alt text says what is to be seen"
                # Colab opens a notebook without the files beside it; `report` goes by the title
                assert re.fullmatch(r'data:image/png;base64,[\w+/=]+ "images/[^"]+\.png"', address)


def test_player_holds_every_epoch_of_the_run(code):
    pages = [output.data["text/html"] for cell in code for output in cell.outputs
             if "stn-film" in output.get("data", {}).get("text/html", "")]
    assert len(pages) == 1
    script = r'<script type="application/json">(.*?)</script>'
    film = json.loads(re.search(script, pages[0], re.DOTALL)[1])
    assert [frame["epoch"] for frame in film["frames"]] == list(range(51))


def test_figures_carry_a_description_and_their_size(code):
    pictures = [output for cell in code for output in cell.outputs
                if "image/png" in output.get("data", {}) and "text/html" not in output.data]
    assert len(pictures) > 10
    for output in pictures:
        about = output.metadata["image/png"]
        assert about["alt"] and about["width"] <= 800 and about["height"] > 100


# ---- as changed, field by field


def fields_of(source):
    """The form fields that a cell sets, in order."""
    return re.findall(r"(?m)^(\w+) = .*# @param", source)


def with_fields(source, values):
    """A cell's source with form fields set to other values."""
    for name in values.keys() & set(fields_of(source)):
        source = re.sub(rf"(?m)^{name} = .*?(?=  # @param)",
                        lambda _, name=name: f"{name} = {values[name]!r}", source)
    return source


class Person:
    """Runs the notebook's cells in this process, as a person does: from any cell on, changed."""

    def __init__(self, code, setup=False):
        self.sources = [cell.source for cell in code
                        if setup or "setup" not in cell.metadata.get("tags", [])]
        self.names, self.shown = {}, []

    def display(self, thing, **_):
        self.shown.append(thing)
        return types.SimpleNamespace(update=lambda *_, **__: None)  # a display handle

    def run(self, first=0, last=None, **values):
        """What the cells from number `first` to `last` print and show, in text."""
        self.shown = []
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for source in self.sources[first:last]:
                cell = ast.parse(with_fields(source, values))
                shown = cell.body.pop() if isinstance(cell.body[-1], ast.Expr) else None
                exec(compile(cell, "cell", "exec"), self.names)
                if shown is not None:
                    value = ast.Expression(shown.value)
                    self.shown.append(eval(compile(value, "cell", "eval"), self.names))
        return "\n".join([printed.getvalue(), *map(str, self.shown)])

    def cell_of(self, text):
        """The number of the first cell with `text` in it."""
        return next(k for k, source in enumerate(self.sources) if text in source)


class StandIns:
    """Instead of data, training and figures: notes what reaches them. Models are real."""

    def __init__(self, person, monkeypatch):
        self.loads, self.fits, self.drawn, self.stop_after = [], [], [], None
        for module, names in ((stn_cifar, ["load_data", "fit"]), (diagnostics, ["robustness"])):
            for name in names:
                monkeypatch.setattr(module, name, getattr(self, name))
        for name in plots.__all__:
            if name.islower() and name not in ("title_of", "light_png", "own_style"):
                monkeypatch.setattr(plots, name, self.drawing(name))
        monkeypatch.setattr(plots, "Film", lambda model, data: types.SimpleNamespace(
            model=model, data=data, epochs=[], bands=[], player=lambda: "a film"))
        monkeypatch.setattr(plots, "Live", lambda film: self)
        monkeypatch.setattr(IPython.display, "display", person.display)

    def load_data(self, config):
        self.loads.append(config)
        if config.dataset == "glyphs":
            images, labels, poses = glyphs.make_glyphs(40, 0)
            return Data(Split(images, labels, poses), None, Split(images, labels, poses),
                        glyphs.CLASSES, "glyphs")
        images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8,
                               generator=torch.Generator().manual_seed(0))
        split = Split(images, torch.arange(40) % 10)
        test = distorted(split, config.distortion) if config.distortion else split
        return Data(split, None, test, cifar10.CLASSES, "CIFAR-10")

    def fit(self, model, data, config, checkpoint_dir=None, on_epoch_end=None):
        assert model.config == config and model.input_shape == data.test.images.shape[1:]
        self.fits.append(types.SimpleNamespace(model=model, data=data, config=config,
                                               checkpoint_dir=checkpoint_dir))
        if self.stop_after == "error":
            raise RuntimeError("the loss became nan")
        done = config.epochs if self.stop_after is None else self.stop_after
        model.eval()
        return [dict(epoch=epoch, train_loss=1.0, train_accuracy=0.5, learning_rate=0.01,
                     precision="bf16", seconds=1.0) for epoch in range(1, done + 1)]

    def robustness(self, model, split, known=diagnostics.KNOWN):
        return {name: dict(values=list(values), accuracy=[0.5] * len(values))
                for name, values in known.items()}

    def drawing(self, name):
        def draw(*given, **_):
            title = next((text for text in given if isinstance(text, str)), "")
            self.drawn.append(types.SimpleNamespace(name=name, title=title, given=given))
            return f"figure {name}: {title}"
        return draw

    def __call__(self, model, history):
        """As plots.Live is called."""

    def draw(self, history, test_accuracy):
        """As plots.Live draws."""


@pytest.fixture
def stand_ins(code, monkeypatch, tmp_path):
    """(a Person in an empty folder, StandIns)."""
    monkeypatch.chdir(tmp_path)
    person = Person(code)
    return person, StandIns(person, monkeypatch)


# another value of a field -> what the config that reaches `fit` then has
IN_CONFIG = dict(
    PRESET=("compact", dict(name="compact", model="separable", batch_size=128)),
    DATASET=("glyphs", dict(dataset="glyphs")),
    DATA_ROOT=("my data", dict(data_root="my data")),
    EPOCHS=(3, dict(epochs=3)),
    BATCH_SIZE=(50, dict(batch_size=50)),
    LEARNING_RATE=(0.02, dict(learning_rate=0.02)),
    LOCALIZATION_LR_SCALE=(0, dict(localization_lr_scale=0)),
    TRANSFORM=("tps", dict(transform="tps")),
    STN=(False, dict(stn=False)),
    SEED=(7, dict(seed=7)),
)
# tried by name below, or in test_colab.py
ELSEWHERE = {"CHECKPOINT_DIR", "COMPARE", "POSE_EPOCHS", "OWN_PICTURE", "FAMILY", "FAMILY_EPOCHS",
             "REPO_URL", "REF", "UPLOAD"}


def test_every_field_is_tried(code):
    found = {field for cell in code for field in fields_of(cell.source)}
    assert found == IN_CONFIG.keys() | ELSEWHERE


def test_without_a_change_the_presets_values_are_in_force(stand_ins):
    person, seen = stand_ins
    for name in PRESETS.keys() - {"taught"}:
        person.run(last=person.cell_of("test, train ="), PRESET=name)
        assert seen.loads[-1] == seen.fits[-1].config == Config.preset(name)


@pytest.mark.parametrize("field", IN_CONFIG)
def test_a_settings_field_reaches_fit(stand_ins, field):
    person, seen = stand_ins
    value, expected = IN_CONFIG[field]
    person.run(last=person.cell_of("test, train ="), **{field: value})
    reached = seen.fits[0].config
    assert seen.loads == [reached]
    assert {name: getattr(reached, name) for name in expected} == expected
    if field != "PRESET":
        assert reached == Config.preset("tutorial", **expected)  # and nothing else is changed


def test_a_bad_value_is_told_by_its_field(stand_ins):
    person, _ = stand_ins
    with pytest.raises(ValueError, match="epochs: 0"):
        person.run(EPOCHS=0)


def test_checkpoint_dir_reaches_fit_and_only_the_experiments(stand_ins):
    person, seen = stand_ins
    person.run(EPOCHS=1, CHECKPOINT_DIR="kept")
    assert [fit.checkpoint_dir for fit in seen.fits] == ["kept", None, None, None]
    seen.fits.clear()
    person.run(EPOCHS=1)
    assert [fit.checkpoint_dir for fit in seen.fits] == [None] * 4


def test_the_sections_further_down_go_by_their_fields(stand_ins):
    person, seen = stand_ins
    said = person.run(EPOCHS=3, COMPARE=False, POSE_EPOCHS=2, FAMILY="tps", FAMILY_EPOCHS=1)
    experiment, pose, family = (fit.config for fit in seen.fits)
    assert "nothing to compare" in said
    assert (experiment.epochs, pose.epochs, family.epochs) == (3, 2, 1)
    assert pose == Config.preset("taught", dataset="cifar10", epochs=2, localization_width=1.0)
    assert family == experiment.replace(transform="tps", epochs=1)
    seen.fits.clear()
    person.run(EPOCHS=1, POSE_EPOCHS=4, FAMILY_EPOCHS=4, SEED=5)  # a first look is one throughout
    assert [fit.config.epochs for fit in seen.fits] == [1] * 4
    assert [fit.config.seed for fit in seen.fits] == [5] * 4


def test_a_picture_of_ones_own_is_shown_to_the_model(stand_ins):
    person, seen = stand_ins
    Image.new("RGB", (60, 40), (250, 10, 10)).save("me.png")
    assert "this is a test image" in person.run(EPOCHS=1)
    said = person.run(person.cell_of("OWN_PICTURE"), OWN_PICTURE=" 'me.png' ")
    assert "this is a test image" not in said
    drawn = [drawing for drawing in seen.drawn if drawing.name == "single_image"]
    picture = drawn[-1].given[1]
    assert picture.shape == (3, 32, 32) and picture.flatten(1)[:, 0].tolist() == [250, 10, 10]


# ---- out of order


def test_the_comparison_differs_in_the_transformer_alone(stand_ins):
    person, seen = stand_ins
    seen.stop_after = 2  # of 3 epochs: the stop button
    person.run(EPOCHS=3, SEED=4)
    experiment, control = (fit.config for fit in seen.fits[:2])
    assert control == experiment.replace(stn=False, epochs=2, precision="bf16")
    assert seen.fits[1].data is seen.fits[0].data


def test_settings_changed_after_the_training_change_no_title_and_no_comparison(stand_ins):
    """TRANSFORM and SEED changed, settings and config re-run, then evaluation: as before."""
    person, seen = stand_ins
    changed = dict(EPOCHS=1, TRANSFORM="rotation", SEED=7, DATASET="glyphs")
    training, after = (person.cell_of(text) for text in ("Film(", "test, train ="))
    first = person.run(EPOCHS=1)
    before = [(drawing.name, drawing.title) for drawing in seen.drawn]
    trained = [fit.config for fit in seen.fits]
    # down to the cell before the training: new settings, config, data and untrained model
    person.run(last=training, **changed)
    seen.drawn.clear(), seen.fits.clear()
    person.run(after, **changed)
    again = [(drawing.name, drawing.title) for drawing in seen.drawn]
    assert again == before[-len(again):]
    assert [fit.config for fit in seen.fits] == trained[1:]
    assert {fit.data.name for fit in seen.fits} == {"CIFAR-10"}
    # and trained anew, they are those of the new settings
    seen.drawn.clear()
    person.run(training, **changed)
    titles = {drawing.title for drawing in seen.drawn if drawing.name == "pairs"}
    assert titles == {f"glyphs · {name} (rotation) · epoch 1" for name in ("tutorial", "taught")}
    assert "CIFAR-10 · tutorial (affine) · epoch 1" in first


def test_after_a_training_that_failed_no_title_tells_of_epochs(stand_ins):
    person, seen = stand_ins
    person.run(EPOCHS=2)
    seen.stop_after = "error"
    with pytest.raises(RuntimeError, match="nan"):
        person.run(EPOCHS=2, TRANSFORM="rotation")
    seen.stop_after = None
    said = person.run(person.cell_of("test, train ="))
    assert "tutorial (rotation) · not trained to the end: test accuracy" in said
    assert "nothing to compare" in said


def test_each_cell_can_be_run_again_by_itself(stand_ins):
    person, seen = stand_ins
    person.run(EPOCHS=1)
    for number in range(len(person.sources)):
        person.run(number, number + 1, EPOCHS=1)
    assert len(seen.fits) == 8


# ---- setting up

MODULE = "stn_cifar_stand_in"  # the package's name where it must not be there already


class Setup:
    """Runs the settings and setup cells in a folder, with pip replaced."""

    def __init__(self, code, folder, monkeypatch):
        self.code, self.pip, self.fails = code, [], None
        self.sources = [cell.source.replace("stn_cifar", MODULE) for cell in code
                        if {"parameters", "setup"} & set(cell.metadata.get("tags", []))]
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", ["", *sys.path])  # as a kernel has it
        monkeypatch.setattr(subprocess, "run", self.run_pip)
        for name in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)

    def run_pip(self, arguments, **options):
        assert isinstance(arguments, list) and not options.get("shell")
        assert options["stdin"] is subprocess.DEVNULL  # asks for no password
        assert options["env"]["GIT_TERMINAL_PROMPT"] == "0"
        self.pip.append(arguments)
        return subprocess.CompletedProcess(arguments, 1 if self.fails else 0, "", self.fails)

    def run(self, **settings):
        """The names that the cells leave behind."""
        names = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for source in self.sources:
                exec(with_fields(source, settings), names)
        return names

    @property
    def installed(self):
        """What pip was to install: each call's last argument."""
        for arguments in self.pip:
            assert arguments[:4] == [sys.executable, "-m", "pip", "install"]
            assert all(option.startswith("-") for option in arguments[4:-1])
        return [arguments[-1] for arguments in self.pip]


def a_package(folder, text=""):
    (folder / MODULE).mkdir(parents=True)
    (folder / MODULE / "__init__.py").write_text(text)
    return folder


@pytest.fixture
def setup(code, tmp_path, monkeypatch):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    return Setup(code, folder, monkeypatch)


def test_there_are_four_setup_cells_folded_in_colab_and_jupyter(code):
    cells = [cell for cell in code if "setup" in cell.metadata.get("tags", [])]
    assert [cell.source.splitlines()[0][:15] for cell in cells] == [
        f"# @title Setup {k}"[:15] for k in range(1, 5)]
    for cell in cells:
        assert cell.metadata.cellView == "form" and cell.metadata.jupyter.source_hidden is True


@pytest.mark.parametrize("place", [".", MODULE])
def test_the_package_beside_the_notebook_is_taken_and_so_is_a_clone(setup, place):
    """A clone in Colab's working folder has the package one level down."""
    root = a_package(Path.cwd() / place)
    for _ in range(2):
        names = setup.run()
        assert not names["missing"] and sys.path.count(str(root)) == 1
    assert names["spec"].origin == str(root / MODULE / "__init__.py") and setup.pip == []


def test_in_the_folder_notebooks_its_repository_is_looked_into(setup, tmp_path, monkeypatch):
    root = a_package(tmp_path / "clone")
    (root / "notebooks").mkdir()
    monkeypatch.chdir(root / "notebooks")
    assert not setup.run()["missing"] and str(root) in sys.path


@pytest.mark.parametrize("empty", [False, True])
def test_no_other_parent_folder_is(setup, tmp_path, monkeypatch, empty):
    """Whoever can write to a folder above, such as /tmp, could have code run otherwise."""
    a_package(tmp_path)
    (tmp_path / "clone" / "notebooks").mkdir(parents=True)
    for folder in ("clone", "clone/notebooks"):
        monkeypatch.chdir(tmp_path / folder)
        if empty:
            Path(MODULE).mkdir()
        with pytest.raises(ValueError, match="came without the package"):
            setup.run()
        assert str(tmp_path) not in sys.path


def test_an_empty_folder_of_that_name_is_skipped(setup, monkeypatch):
    (Path.cwd() / MODULE).mkdir()
    names = setup.run(REPO_URL="https://example.org/me/fork")
    assert names["missing"] and setup.installed == ["git+https://example.org/me/fork"]
    # also where its import was tried before
    monkeypatch.setitem(sys.modules, MODULE, __import__(MODULE))
    assert setup.run(REPO_URL="https://example.org/me/fork")["missing"]
    assert MODULE not in sys.modules


def test_an_address_may_be_a_folder_and_a_ref_goes_along(setup, tmp_path, monkeypatch):
    clone = tmp_path / "my clone"
    clone.mkdir()
    setup.run(REPO_URL=str(clone))
    monkeypatch.setenv("HOME", str(tmp_path))
    setup.run(REPO_URL="~/my clone", REF="v0.2")
    setup.run(REPO_URL="https://example.org/me/fork.git", REF="feature/warp-2")
    assert setup.installed == [f"git+{clone.as_uri()}", f"git+{clone.as_uri()}@v0.2",
                               "git+https://example.org/me/fork.git@feature/warp-2"]


@pytest.mark.parametrize("fields", [
    *(dict(REPO_URL=f"https://example.org/a{more}") for more in (
        "; touch hit", "$(touch hit)", "`touch hit`", " --extra-index-url x", "\ntouch", "#egg=x",
        "?x=1", "@-x", "'")),
    *(dict(REPO_URL=address) for address in (
        "-rsomewhere", "--help", "git+https://example.org/a", "http://example.org/a", "nowhere",
        "ssh://git@example.org/a", "https://token@example.org/a", "https://")),
    *(dict(REPO_URL="https://example.org/a", REF=ref) for ref in (
        "-x", "main; touch hit", "$(touch hit)", "`x`", "a b", "main\n", "@", "a@b"))])
def test_what_is_no_address_or_no_ref_reaches_no_pip(setup, fields):
    with pytest.raises(ValueError, match=r"REPO_URL: .*, REF: "):
        setup.run(**fields)
    assert setup.pip == []


def test_uploaded_alone_it_says_what_to_do(setup):
    with pytest.raises(ValueError, match="REPO_URL in the settings") as told:
        setup.run()
    assert "one-file notebook" in str(told.value) and setup.pip == []
    assert "python -m stn_cifar notebook FILE" in str(told.value).replace(MODULE, "stn_cifar")


def test_pip_failing_is_told_with_its_words(setup):
    setup.fails = "fatal: repository 'https://example.org/a/' not found"
    with pytest.raises(RuntimeError, match="not found"):
        setup.run(REPO_URL="https://example.org/a")


# ---- as run

SMALL_GLYPHS = """
from stn_cifar.data import glyphs
make_all = glyphs.make_glyphs
glyphs.make_glyphs = lambda count, seed: make_all(count // 50, seed)
"""


def test_all_cells_run_with_real_figures_and_a_real_if_small_training(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = glyphs.make_glyphs
    monkeypatch.setattr(glyphs, "make_glyphs", lambda count, seed: make(count // 200, seed))
    person = Person(code)
    monkeypatch.setattr(IPython.display, "display", person.display)
    said = person.run(DATASET="glyphs", EPOCHS=1)
    assert re.search(r"glyphs · tutorial \(affine\) · epoch 1: test accuracy \d", said)
    assert re.search(r"with the transformer, \d+\.\d% without; one run each", said)
    assert re.search(r"rotation error: median \d+\.\d°, mean \d+\.\d°", said)
    assert "warped (8, 3, 32, 32), theta (8, 2, 3); untrained, it changes the images by 0e+" in said
    figures = [thing for thing in person.shown if isinstance(thing, plots.style.StyledFigure)]
    assert len(figures) >= 13
    assert all(figure.texts[0].get_text() for figure in figures)  # a title


def execute(notebook, folder, python=sys.executable, until=None, **settings):
    """Run the notebook in `folder` with some settings replaced; returns what its cells printed.

    until: run no further than the first code cell that holds this text.
    """
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    if until is not None:
        last = next(k for k, cell in enumerate(notebook.cells)
                    if cell.cell_type == "code" and until in cell.source)
        notebook.cells = notebook.cells[:last + 1]
    cells = code_of(notebook)
    assert settings.keys() <= set(fields_of(cells[0].source))
    cells[0].source = with_fields(cells[0].source, settings)
    config = next(cell for cell in cells if "Config.preset" in cell.source)
    config.source = SMALL_GLYPHS + config.source
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("PYTHONPATH", "STN_CIFAR_DATA")}
    # pip reads the value of a --no-… switch the wrong way round: 0 means no isolation
    environment |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1",
                    "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    run = ("import sys, nbformat, nbclient; p = sys.argv[1]; n = nbformat.read(p, 4); "
           "nbclient.NotebookClient(n, kernel_name='python3', timeout=280).execute(); "
           "nbformat.write(n, p)")
    done = subprocess.run([python, "-c", run, str(path)], cwd=folder, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs_text(code_of(nbformat.read(path, as_version=4)))


def accuracy_line(text):
    return re.search(r"^.*: test accuracy \d+\.\d%, .*$", text, re.MULTILINE)[0]


@pytest.mark.slow
def test_runs_beside_the_package_and_settings_take_effect(notebook, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copytree(ROOT / "stn_cifar", tmp_path / "stn_cifar")
    text = execute(notebook, folder, DATASET="glyphs", EPOCHS=2, TRANSFORM="rotation", SEED=3)
    assert "glyphs · tutorial (rotation) · epoch 2: test accuracy" in text
    assert "seed=3" in text


def bare_python(folder):
    """A fresh environment that has everything but stn_cifar, as Colab has."""
    # the tests' own packages, without what an editable install of this one adds
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")],
                   check=True)
    python = folder / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout
    borrowed = [sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("-packages"))]
    (Path(site.strip()) / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-c", "import stn_cifar"], cwd=folder, env=environment,
                          capture_output=True)
    assert done.returncode == 1
    return python


@pytest.mark.slow
def test_alone_in_an_empty_folder_it_installs_itself_and_repeats_its_numbers(notebook, tmp_path):
    """With REPO_URL a local clone."""
    clone, alone = tmp_path / "clone", tmp_path / "alone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    alone.mkdir()
    python = bare_python(tmp_path)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True,
                            capture_output=True, text=True).stdout
    settings = dict(DATASET="glyphs", EPOCHS=1, REPO_URL=str(clone), REF=commit.strip(),
                    until="test, train = evaluate(")  # the cells after it are run by other tests
    first = execute(notebook, alone, python, **settings)
    imported = subprocess.run([python, "-c", "import stn_cifar"], cwd=alone, capture_output=True)
    assert imported.returncode == 0
    second = execute(notebook, alone, python, **settings)
    assert accuracy_line(first) == accuracy_line(second)
    other_seed = execute(notebook, alone, python, **settings, SEED=1)
    assert accuracy_line(other_seed) != accuracy_line(first)  # or equal numbers mean nothing


@pytest.mark.slow
def test_the_single_file_runs_in_a_folder_with_nothing_of_use(tmp_path):
    """No repository, no address, and a package of the same name beside it not to be taken."""
    folder = tmp_path / "alone"
    (folder / "stn_cifar").mkdir(parents=True)
    (folder / "stn_cifar" / "__init__.py").write_text("raise RuntimeError('not the packed one')")
    single_file.write(tmp_path / "packed.ipynb")
    notebook = nbformat.read(tmp_path / "packed.ipynb", as_version=4)
    setup = next(cell.source for cell in notebook.cells if "PACKED" in cell.source)
    notebook.cells += [nbformat.v4.new_code_cell(setup), nbformat.v4.new_code_cell(
        "import inspect, stn_cifar.stn\nfrom pathlib import Path\n"
        "print('source:', inspect.getsource(stn_cifar.stn.build_model).splitlines()[0])\n"
        "print('places:', sum(Path(p).name.startswith('stn_cifar-') for p in sys.path))")]  # twice
    text = execute(notebook, folder, bare_python(tmp_path), DATASET="glyphs", EPOCHS=1)
    assert "glyphs · tutorial (affine) · epoch 1: test accuracy" in text
    assert "source: def build_model(" in text and "places: 1" in text
