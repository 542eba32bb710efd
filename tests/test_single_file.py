"""The notebook as one file: what is packed, and how. That it runs alone is in test_notebook.py."""

import base64
import io
import json
import re
import zipfile
from pathlib import Path

import nbformat
import pytest

from stn_cifar import single_file
from stn_cifar.__main__ import main

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


def test_the_package_and_nothing_else_is_packed(alone):
    packed = re.search('PACKED = """\n(.*?)"""', setup_of(alone).source, re.DOTALL)[1]
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))) as archive:
        modules = sorted((ROOT / "stn_cifar").glob("*.py"))
        assert archive.namelist() == [f"stn_cifar/{path.name}" for path in modules]
        for path in modules:
            assert archive.read(f"stn_cifar/{path.name}") == path.read_bytes()
    assert max(map(len, packed.splitlines())) <= 120  # editors choke on longer ones


def test_same_bytes_each_time_and_other_bytes_for_another_package(alone, tmp_path, monkeypatch):
    single_file.write(tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == alone.read_bytes()
    name = re.search('NAME = "(.*?)"', setup_of(alone).source)[1]
    package = tmp_path / "stn_cifar"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(single_file, "PACKAGE", package)
    single_file.write(tmp_path / "other.ipynb")
    assert re.search('NAME = "(.*?)"', setup_of(tmp_path / "other.ipynb").source)[1] != name


def test_it_is_the_notebook_without_outputs_and_asks_for_no_address(alone):
    source, copy = (nbformat.read(path, as_version=4) for path in (single_file.NOTEBOOK, alone))
    nbformat.validate(copy)
    assert copy.metadata == source.metadata and len(copy.cells) == len(source.cells)
    changed = [k for k, (a, b) in enumerate(zip(source.cells, copy.cells, strict=True)) if a.source != b.source]
    setup = next(k for k, cell in enumerate(copy.cells) if "PACKED" in cell.source)
    parameters = next(k for k, cell in enumerate(copy.cells) if "parameters" in cell.metadata.get("tags", []))
    assert changed == [parameters, setup - 1, setup]
    assert "REPO_URL" not in json.dumps([cell.source for cell in copy.cells[:setup] + copy.cells[setup + 1:]])
    assert "PRESET = " in copy.cells[parameters].source
    for cell in copy.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
    assert alone.stat().st_size < 10e6


def test_the_packed_cell_is_folded_in_colab_and_in_jupyter(alone):
    cell = setup_of(alone)
    assert cell.metadata.cellView == "form" and cell.metadata.jupyter.source_hidden is True
    assert cell.source.startswith("# @title ")


def test_what_goes_wrong_is_told(tmp_path, capsys, monkeypatch):
    assert main(["notebook", str(tmp_path / "no" / "folder" / "a.ipynb")]) == 2
    assert "a.ipynb: cannot be written (No such file or directory); name another place" in capsys.readouterr().err
    assert main(["notebook", str(tmp_path / "a.html")]) == 2
    assert "must end in .ipynb" in capsys.readouterr().err
    before = single_file.NOTEBOOK.read_bytes()
    assert main(["notebook", str(single_file.NOTEBOOK)]) == 2
    assert "is the notebook itself" in capsys.readouterr().err and single_file.NOTEBOOK.read_bytes() == before
    monkeypatch.setattr(single_file, "NOTEBOOK", tmp_path / "gone.ipynb")
    assert main(["notebook", str(tmp_path / "a.ipynb")]) == 2
    assert "is not part of the installed package; it is in the repository" in capsys.readouterr().err
    assert not (tmp_path / "a.ipynb").exists()


def test_command_writes_it_and_says_what_it_needs(alone, tmp_path, capsys):
    assert main(["notebook", str(tmp_path / "b.ipynb")]) == 0
    assert (tmp_path / "b.ipynb").read_bytes() == alone.read_bytes()
    assert re.search(r"b\.ipynb: [\d,]+ kB; needs nothing beside it but Python with torch", capsys.readouterr().out)
