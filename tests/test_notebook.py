"""The notebook as it is committed, and as people run it: beside the package, and alone in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from stn_cifar import study

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
    parts = []
    for output in (output for cell in cells for output in cell.outputs):
        parts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
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
    assert not re.search(r"(/home|/root|/work|/mnt|/tmp|/Users|[A-Z]:\\\\)", outputs_text(code))
    assert PATH.stat().st_size < 8 * 2**20


def test_accuracy_shown_is_the_recorded_one(code):
    records = [r for r in study.load_results(ROOT / "results")
               if study.label(study.Config(**r["config"]), r["dataset"]) == "tutorial-cifar10-seed0"]
    assert len(records) == 1 and records[0]["epochs_done"] == 50
    assert f"test accuracy {records[0]['test']['accuracy']:.1%}" in outputs_text(code)
    assert records[0]["test"]["accuracy"] >= 0.57


# ---- as run

# Small glyphs in place of the 60,000: what is tested is the notebook, not the training.
SMALL_GLYPHS = """
import stn_cifar.data, stn_cifar.glyphs
stn_cifar.data.make_glyphs = lambda count, seed: stn_cifar.glyphs.make_glyphs(count // 25, seed)
"""


def execute(notebook, folder, python=sys.executable, small=True, **settings):
    """Run the notebook in `folder` with some settings replaced; returns what its cells printed."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for name, value in settings.items():
        cells[0].source, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", cells[0].source)
        assert count == 1, name
    if small:
        cells[2].source = SMALL_GLYPHS + cells[2].source
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


def test_alone_in_an_empty_folder_it_installs_itself_and_repeats_its_numbers(notebook, tmp_path):
    """With REPO_URL a local clone: a fresh environment has everything but stn_cifar, as Colab has."""
    clone, alone = tmp_path / "clone", tmp_path / "alone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    alone.mkdir()
    # the tests' own packages, without what an editable install of this one adds
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                          capture_output=True, text=True).stdout.strip()
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    assert subprocess.run([python, "-c", "import stn_cifar"], cwd=alone, capture_output=True).returncode == 1
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True).stdout
    settings = dict(DATASET="glyphs", EPOCHS=1, REPO_URL=str(clone), REF=commit.strip())
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
