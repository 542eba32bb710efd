"""The notebook as one file: what is packed, and how. That it runs alone is in test_notebook.py."""

import base64
import hashlib
import io
import re
import zipfile
from pathlib import Path

import nbformat
import pytest

import stn_cifar
from stn_cifar.__main__ import main
from stn_cifar.notebook import single_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "alone.ipynb"
    single_file.write(path)
    return path


def setup_of(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if "PACKED" in cell.source]
    assert len(cells) == 1
    return cells[0]


def packed_in(path):
    text = re.search('PACKED = """\n(.*?)"""', setup_of(path).source, re.DOTALL)[1]
    assert max(map(len, text.splitlines())) <= 100  # editors choke on longer ones
    return base64.b64decode(text)


def test_the_package_is_packed_with_its_folders_and_data_files_and_nothing_else(alone):
    with zipfile.ZipFile(io.BytesIO(packed_in(alone))) as archive:
        names = set(archive.namelist())
        for name in names:
            assert archive.read(name) == (ROOT / name).read_bytes()
    assert {"stn_cifar/stn.py", "stn_cifar/plots/player.html", "stn_cifar/training/loop.py",
            "stn_cifar/data/__init__.py"} <= names
    assert names >= {path.relative_to(ROOT).as_posix()
                     for path in (ROOT / "stn_cifar").rglob("*.py")}
    assert not [name for name in names if "__pycache__" in name or "/." in name]


def test_same_bytes_each_time_and_other_bytes_for_another_package(alone, tmp_path, monkeypatch):
    single_file.write(tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == alone.read_bytes()
    package = tmp_path / "stn_cifar"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__pycache__" / "stn.pyc").write_text("not to be packed")
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(single_file, "PACKAGE", package)
    single_file.write(tmp_path / "other.ipynb")
    assert packed_in(tmp_path / "other.ipynb") != packed_in(alone)
    with zipfile.ZipFile(io.BytesIO(packed_in(tmp_path / "other.ipynb"))) as archive:
        assert archive.namelist() == ["stn_cifar/__init__.py"]


def test_it_says_which_version_is_packed(alone):
    digest = hashlib.sha256(packed_in(alone)).hexdigest()[:12]
    cells = nbformat.read(alone, as_version=4).cells
    prose = next(cell.source for cell in cells if "is packed in the cell below" in cell.source)
    assert f"version {stn_cifar.__version__}, content {digest}" in prose
    assert f'NAME = "stn_cifar-{digest}-"' in setup_of(alone).source


def test_it_is_the_notebook_without_outputs_and_asks_for_no_address(alone):
    source, copy = (nbformat.read(path, as_version=4) for path in (single_file.NOTEBOOK, alone))
    nbformat.validate(copy)
    assert copy.metadata == source.metadata
    kept = [cell for cell in source.cells if "setup" not in cell.metadata.get("tags", [])]
    place = next(k for k, cell in enumerate(copy.cells) if "PACKED" in cell.source)
    assert copy.cells[place - 1].source.startswith("## Setup")
    rest = copy.cells[:place - 1] + copy.cells[place + 1:]
    changed = [a for a, b in zip(kept, rest, strict=True) if a.source != b.source]
    assert [cell.metadata.tags for cell in changed] == [["parameters"]]
    settings = next(cell.source for cell in rest if "parameters" in cell.metadata.get("tags", []))
    assert "PRESET = " in settings and not re.search("(REPO_URL|REF) =", settings)
    code = "\n".join(cell.source for cell in rest if cell.cell_type == "code")
    assert "REPO_URL" not in code and not re.search(r"\bREF\b", code)
    for cell in copy.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
    assert alone.stat().st_size < 1e6


def test_the_packed_cell_is_folded_in_colab_and_in_jupyter(alone):
    cell = setup_of(alone)
    assert cell.metadata.cellView == "form" and cell.metadata.jupyter.source_hidden is True
    assert cell.source.startswith("# @title ")


def test_what_goes_wrong_is_told(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert main(["notebook", str(tmp_path / "file" / "a.ipynb")]) == 2
    assert "a.ipynb: cannot be written (" in capsys.readouterr().err
    assert main(["notebook", str(tmp_path / "a.html")]) == 2
    assert "must end in .ipynb" in capsys.readouterr().err
    before = single_file.NOTEBOOK.read_bytes()
    assert main(["notebook", str(single_file.NOTEBOOK)]) == 2
    assert "is there already; name another file" in capsys.readouterr().err
    assert single_file.NOTEBOOK.read_bytes() == before
    monkeypatch.setattr(single_file, "NOTEBOOK", tmp_path / "gone.ipynb")
    assert main(["notebook", str(tmp_path / "a.ipynb")]) == 2
    assert "is not part of the installed package; it is in the repo" in capsys.readouterr().err
    assert not (tmp_path / "a.ipynb").exists()


def test_command_writes_it_and_says_what_it_needs(alone, tmp_path, capsys):
    assert main(["notebook", str(tmp_path / "b.ipynb")]) == 0
    assert (tmp_path / "b.ipynb").read_bytes() == alone.read_bytes()
    assert re.search(r"b\.ipynb: [\d,]+ kB; needs nothing beside it but Python with torch",
                     capsys.readouterr().out)
