"""The notebook as it is committed, and as people run it: cell by cell, beside the package, and alone in a folder."""

import ast
import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import IPython.display
import nbformat
import pytest
import torch
from PIL import Image

import stn_cifar.data
from stn_cifar import glyphs, plots, single_file, study, training

ROOT = Path(__file__).parents[1]
PATH = ROOT / "notebooks" / "stn_cifar10.ipynb"
SETTINGS = ["PRESET", "DATASET", "EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "LOCALIZATION_LR_SCALE", "TRANSFORM", "STN",
            "SEED", "CHECKPOINT_DIR", "REPO_URL", "REF"]


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert before.cell_type == "markdown", cell.source


def test_metadata_is_what_colab_reads_and_holds_no_widgets(notebook):
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab == {"gpuType": "T4", "provenance": [], "toc_visible": True}
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


def test_outputs_are_of_one_complete_run_without_errors_or_paths_of_a_machine(notebook, code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds
    assert "widget" not in " ".join(kind for cell in code for output in cell.outputs for kind in output.get("data", {}))
    assert not re.search(r"(/home|/root|/work|/mnt|/tmp|/Users|[A-Z]:\\\\)", outputs_text(code))
    assert PATH.stat().st_size < 8 * 2**20


def test_accuracy_shown_is_the_recorded_one(code):
    records = [r for r in study.load_results(ROOT / "results")
               if study.label(study.Config(**r["config"]), r["dataset"]) == "tutorial-cifar10-seed0"]
    assert len(records) == 1 and records[0]["epochs_done"] == 50
    assert f"test accuracy {records[0]['test']['accuracy']:.1%}" in outputs_text(code)
    assert f"training accuracy {records[0]['train']['accuracy']:.1%}" in outputs_text(code)
    assert records[0]["test"]["accuracy"] >= 0.57


def test_headings_are_in_order(notebook):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_picture_in_the_text_is_described_and_carried_along(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert "<img" not in cell.source
            for described, address in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", cell.source):
                assert len(described) > 20, "alt text says what is to be seen"
                assert address.startswith("data:image/"), "Colab opens a notebook without the files beside it"


def test_player_holds_every_epoch_of_the_run(code):
    pages = [output.data["text/html"] for cell in code for output in cell.outputs
             if "stn-film" in output.get("data", {}).get("text/html", "")]
    assert len(pages) == 1
    film = json.loads(re.search(r'<script type="application/json">(.*?)</script>', pages[0], re.DOTALL)[1])
    assert [frame["epoch"] for frame in film["frames"]] == list(range(51))


# ---- as changed, field by field


def fields_of(source):
    """The form fields that a cell sets, in order."""
    return re.findall(r"(?m)^(\w+) = .*# @param", source)


def with_fields(source, values):
    """A cell's source with form fields set to other values."""
    for name in values.keys() & set(fields_of(source)):
        source = re.sub(rf"(?m)^{name} = .*?(?=  # @param)", lambda _, name=name: f"{name} = {values[name]!r}", source)
    return source


class Person:
    """Runs the notebook's cells in this process, as a person does: from any cell on, with fields changed."""

    def __init__(self, code):
        self.sources = [re.sub(r"(?m)^(\s*)%.*$", r"\1...", cell.source) for cell in code]  # without magics
        self.names, self.shown = {}, []

    def display(self, thing, **_):
        self.shown.append(thing)
        return self

    def update(self, *_, **__):
        """As a display handle has it."""

    def run(self, first=0, **values):
        """What the cells from number `first` on print and show, in text."""
        self.shown = []
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for source in self.sources[first:]:
                cell = ast.parse(with_fields(source, values))
                last = cell.body.pop() if isinstance(cell.body[-1], ast.Expr) else None
                exec(compile(cell, "cell", "exec"), self.names)
                if last is not None:
                    self.shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), self.names))
        figures = [text.get_text() for thing in self.shown if hasattr(thing, "findobj")
                   for text in thing.findobj(lambda artist: hasattr(artist, "get_text"))]
        return "\n".join([printed.getvalue(), *map(repr, self.shown), *figures])

    def cell_of(self, field):
        return next(k for k, source in enumerate(self.sources) if field in fields_of(source))

    @property
    def loss(self):
        return self.names["history"][-1]["train_loss"]


@contextlib.contextmanager
def small_world(person, folder):
    """Within it `person` works in `folder` with 250 training and 200 test images, and figures of few pictures."""
    make = glyphs.make_glyphs
    pictures = torch.randint(256, (250, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = stn_cifar.data.Split(pictures, torch.arange(250) % 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(ROOT)
        patch.setattr(stn_cifar.data, "make_glyphs", lambda count, seed: make({50_000: 250, 10_000: 200}[count], seed))
        patch.setattr(stn_cifar.data, "_find", lambda config: Path("cifar-10"))
        patch.setattr(stn_cifar.data, "_read_cifar10", lambda path: (noise, noise[:200]))
        patch.setattr(training, "choose_precision", lambda *_: "fp32")  # measuring takes longer than these epochs
        for name in ("samples", "pairs"):
            patch.setattr(plots, name, functools.partial(getattr(plots, name), count=1))
        patch.setattr(IPython.display, "display", person.display)
        yield


@pytest.fixture(scope="module")
def person(code, tmp_path_factory):
    """A Person who has run all cells, one epoch on a few glyphs, and what they said: (person, text, loss)."""
    person = Person(code)
    with small_world(person, tmp_path_factory.mktemp("person")):
        said = person.run(DATASET="glyphs", EPOCHS=1)
        yield person, said, person.loss


# another value of each field -> what is said then, and not before; and whether the training is another
CHANGES = dict(
    PRESET=("glyphs", r"glyphs · glyphs \(similarity\) · epoch 1: test", True),
    DATASET=("cifar10", r"CIFAR-10 · tutorial \(affine\) · epoch 1: test", True),
    EPOCHS=(2, r"glyphs · tutorial \(affine\) · epoch 2: test", True),
    BATCH_SIZE=(50, r"batch_size=50", True),
    LEARNING_RATE=(0.02, r"learning_rate=0\.02", True),
    LOCALIZATION_LR_SCALE=(0.5, r"localization_lr_scale=0\.5", True),
    TRANSFORM=("tps", r"tutorial \(tps\) · epoch 1: test", True),
    STN=(False, r"tutorial \(no transformer\) · epoch 1: test", True),
    SEED=(7, r"seed=7", True),
    CHECKPOINT_DIR=("kept", r"", False),
    OWN_PICTURE=("me.png", r"", False),
    FAMILY=("tps", r"tutorial \(tps\) · epoch 1", False),
    FAMILY_EPOCHS=(2, r"tutorial \(rotation\) · epoch 1", False),  # no more than EPOCHS; counted: see below
    COMPARE=(False, r"nothing to compare", False),
    POSE_EPOCHS=(2, r"taught \(rotation\) · epoch 1", False),  # likewise
)
NOT_HERE = {"REPO_URL", "REF", "UPLOAD"}  # see the test of the notebook alone, and test_colab.py
# with these the figures have other numbers in them and nothing else, so their titles will do
NUMBERS = {"EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "LOCALIZATION_LR_SCALE", "SEED", "CHECKPOINT_DIR"}


def test_every_field_is_tried(person):
    found = {field for source in person[0].sources for field in fields_of(source)}
    assert found == CHANGES.keys() | NOT_HERE


@pytest.mark.parametrize(("field", "said"), [("FAMILY_EPOCHS", r"tutorial \(rotation\) · epoch (\d)"),
                                              ("POSE_EPOCHS", r"taught \(rotation\) · epoch (\d)")])
def test_epochs_of_a_section_are_counted_as_its_field_says(person, field, said, monkeypatch):
    titles_for_figures(monkeypatch)
    person, _, _ = person
    person.run(DATASET="glyphs", EPOCHS=1)
    person.names["config"] = person.names["config"].replace(epochs=4)
    for value in (1, 2):
        assert re.search(said, person.run(person.cell_of(field), **{field: value}))[1] == str(value)


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changed_and_run_from_its_cell_on_changes_what_is_said(person, field, monkeypatch):
    person, before, loss = person
    if field in NUMBERS:
        titles_for_figures(monkeypatch)
    value, said, trains_otherwise = CHANGES[field]
    Image.new("RGB", (60, 40)).save("me.png")
    after = person.run(person.cell_of(field), **{"DATASET": "glyphs", "EPOCHS": 1, field: value})
    assert re.search(said, after) and (said == "" or field.endswith("_EPOCHS") or not re.search(said, before))
    assert (person.loss != loss) == trains_otherwise
    if field == "CHECKPOINT_DIR":
        assert any(Path(value).iterdir())
        assert "resuming after epoch 1 of 1" in person.run(DATASET="glyphs", EPOCHS=1, CHECKPOINT_DIR=value)
    if field == "OWN_PICTURE":
        assert "this is a test image" in before and "this is a test image" not in after


def titles_for_figures(monkeypatch):
    for name in plots.__all__:
        if name.islower() and name not in ("curves", "title_of", "first_of_each_class"):
            monkeypatch.setattr(plots, name, lambda *given, **_: " ".join(t for t in given if isinstance(t, str)))


def test_set_back_it_says_the_same_again(person, monkeypatch):
    titles_for_figures(monkeypatch)
    person, before, loss = person
    said = person.run(DATASET="glyphs", EPOCHS=1)
    assert person.loss == loss
    assert accuracy_line(said) == accuracy_line(before)


# ---- as run

# Small glyphs in place of the 60,000: what is tested is the notebook, not the training.
SMALL_GLYPHS = """
import stn_cifar.data, stn_cifar.glyphs
stn_cifar.data.make_glyphs = lambda count, seed: stn_cifar.glyphs.make_glyphs(count // 50, seed)
"""


def execute(notebook, folder, python=sys.executable, small=True, until=None, **settings):
    """Run the notebook in `folder` with some settings replaced; returns what its cells printed.

    until: run no further than the first code cell that holds this text.
    """
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    if until is not None:
        last = next(k for k, cell in enumerate(notebook.cells) if cell.cell_type == "code" and until in cell.source)
        notebook.cells = notebook.cells[:last + 1]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert settings.keys() <= set(fields_of(cells[0].source))
    cells[0].source = with_fields(cells[0].source, settings)
    if small:
        config = next(cell for cell in cells if "Config.preset" in cell.source)
        config.source = SMALL_GLYPHS + config.source
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "STN_CIFAR_DATA")}
    # pip reads the value of a --no-… switch the wrong way round: 0 means no isolation (so in 23.2 and in 26.3)
    environment |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1",
                    "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    run = "import sys, nbformat, nbclient; p = sys.argv[1]; n = nbformat.read(p, 4); " \
          "nbclient.NotebookClient(n, kernel_name='python3', timeout=280).execute(); nbformat.write(n, p)"
    done = subprocess.run([python, "-c", run, str(path)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs_text([c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"])


def accuracy_line(text):
    return re.search(r"^.*: test accuracy \d+\.\d%, .*$", text, re.MULTILINE)[0]


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
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                          capture_output=True, text=True).stdout.strip()
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, "-c", "import stn_cifar"], cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 1
    return python


def test_alone_in_an_empty_folder_it_installs_itself_and_repeats_its_numbers(notebook, tmp_path):
    """With REPO_URL a local clone."""
    clone, alone = tmp_path / "clone", tmp_path / "alone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    alone.mkdir()
    python = bare_python(tmp_path)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True).stdout
    settings = dict(DATASET="glyphs", EPOCHS=1, REPO_URL=str(clone), REF=commit.strip(),
                    until="test, train = evaluate(")  # the cells after it are run by the tests before and after
    first = execute(notebook, alone, python, **settings)
    assert subprocess.run([python, "-c", "import stn_cifar"], cwd=alone, capture_output=True).returncode == 0
    second = execute(notebook, alone, python, **settings)
    assert accuracy_line(first) == accuracy_line(second)
    other_seed = execute(notebook, alone, python, **settings, SEED=1)
    assert accuracy_line(other_seed) != accuracy_line(first)  # or equal numbers would mean nothing


def test_alone_without_an_address_it_says_what_to_do(notebook, tmp_path):
    setup = next(cell.source for cell in notebook.cells if "find_spec" in cell.source)
    setup = re.sub(r"%\w+ .*", "...", setup).replace('find_spec("stn_cifar")', 'find_spec("no_such_package")')
    done = subprocess.run([sys.executable, "-c", 'REPO_URL = REF = ""\n' + setup], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode != 0
    assert "set REPO_URL in the settings" in done.stderr


def test_the_single_file_runs_in_a_folder_with_nothing_of_use(tmp_path):
    """No repository, no address, and a package of the same name beside it that must not be taken."""
    folder = tmp_path / "alone"
    (folder / "stn_cifar").mkdir(parents=True)
    (folder / "stn_cifar" / "__init__.py").write_text("raise RuntimeError('this is not the packed one')")
    single_file.write(tmp_path / "packed.ipynb")
    notebook = nbformat.read(tmp_path / "packed.ipynb", as_version=4)
    setup = next(cell.source for cell in notebook.cells if "PACKED" in cell.source)
    notebook.cells += [nbformat.v4.new_code_cell(setup), nbformat.v4.new_code_cell(
        "import inspect, stn_cifar.stn\nfrom pathlib import Path\n"
        "print('source:', inspect.getsource(stn_cifar.stn.build_model).splitlines()[0])\n"
        "print('places:', sum(Path(p).name.startswith('stn_cifar-') for p in sys.path))")]  # set up twice
    text = execute(notebook, folder, bare_python(tmp_path), DATASET="glyphs", EPOCHS=1)
    assert "glyphs · tutorial (affine) · epoch 1: test accuracy" in text
    assert "source: def build_model(config):" in text and "places: 1" in text
