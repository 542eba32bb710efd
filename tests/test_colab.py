"""Colab's ways, against a stand-in of `google.colab`: form fields, upload, Google Drive, a session that ends."""

import ast
import json
import re
import sys
import types

import nbformat
import pytest
from PIL import Image
from test_notebook import PATH, Person, small_world, titles_for_figures

from stn_cifar.config import PRESETS, TRANSFORMS


@pytest.fixture(scope="module")
def code():
    return [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]


# ---- form fields

# As Colab's own notebook on forms has them: a list of choices in JSON, or a type, or both.
FIELD = re.compile(r"(?P<name>\w+) = (?P<value>.+?)  # @param (?P<choices>\[.*?\])? ?(?P<options>\{.*\})?")
KINDS = dict(string=str, boolean=bool, integer=int, number=(int, float))


def fields(code):
    """name -> (value, choices or None, type or None) of every form field in the notebook."""
    found = {}
    for line in (line for cell in code for line in cell.source.splitlines() if "@param" in line):
        match = FIELD.fullmatch(line)
        assert match and (match["choices"] or match["options"]), f"no form field to Colab: {line}"
        kind = re.search(r'type: ?"(\w+)"', match["options"] or "")
        choices = json.loads(match["choices"]) if match["choices"] else None
        found[match["name"]] = (ast.literal_eval(match["value"]), choices, kind and kind[1])
    return found


def test_every_form_field_is_one_that_colab_can_show_and_holds_a_value_it_can_have(code):
    for name, (value, choices, kind) in fields(code).items():
        if choices is not None:
            # of a raw list the text is put into the code as it is: "None" stands for None
            assert (repr(value) if kind == "raw" else value) in choices, name
        elif kind != "raw":
            assert kind in KINDS and isinstance(value, KINDS[kind]), name
            assert (kind == "boolean") == isinstance(value, bool), name


def test_choices_are_all_that_there_are(code):
    found = fields(code)
    assert found["PRESET"][1] == [name for name in PRESETS if name != "taught"]  # which has a section of its own
    assert found["TRANSFORM"][1] == ["", *TRANSFORMS]
    assert found["FAMILY"][1] == list(TRANSFORMS)
    assert found["STN"][1] == ["None", "True", "False"]


@pytest.mark.parametrize("line", [
    'STN = None  # @param [None, True, False] {type:"raw"}',  # no JSON
    "EPOCHS = 3  # @param", 'NAME = "b"  # @param ["a"]', 'N = "3"  # @param {type:"integer"}',
    'N = True  # @param {type:"integer"}'])
def test_a_field_that_colab_cannot_show_is_found_out(line):
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        test_every_form_field_is_one_that_colab_can_show_and_holds_a_value_it_can_have([types.SimpleNamespace(source=line)])


def test_cells_with_fields_have_a_title(code):
    for cell in code:
        if "@param" in cell.source:
            assert re.match(r"# @title \S", cell.source)


# ---- a session


class Colab:
    """Stands in for the module google.colab: a Drive to mount, and a person who uploads, or cancels."""

    def __init__(self, drive):
        self.folder, self.mounted, self.uploads = drive, 0, [{}]
        self.drive = types.SimpleNamespace(mount=self.mount)
        self.files = types.SimpleNamespace(upload=lambda: self.uploads.pop(0))

    def mount(self, place):
        assert place == str(self.folder)
        (self.folder / "MyDrive").mkdir(parents=True, exist_ok=True)
        self.mounted += 1


@pytest.fixture
def session(code, tmp_path, monkeypatch):
    """(a function that starts a session: a Person, the Colab they are in); Drive is in tmp_path."""
    titles_for_figures(monkeypatch)
    colab = Colab(tmp_path / "drive")
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=colab))
    monkeypatch.setitem(sys.modules, "google.colab", colab)

    def start():
        person = Person(code)
        person.sources = [source.replace("/content/drive", str(colab.folder)) for source in person.sources]
        return person
    return start, colab


def test_a_run_kept_on_drive_goes_on_in_the_next_session(session, tmp_path):
    start, colab = session
    fields = dict(DATASET="glyphs", COMPARE=False, FAMILY_EPOCHS=1,
                  CHECKPOINT_DIR=str(colab.folder / "MyDrive" / "stn"))
    first, second = start(), start()
    with small_world(first, tmp_path):
        first.run(EPOCHS=1, **fields)
    assert colab.mounted == 1 and any((colab.folder / "MyDrive" / "stn").iterdir())
    with small_world(second, tmp_path):
        assert "resuming after epoch 1 of 1" in second.run(EPOCHS=1, **fields)
    assert colab.mounted == 2 and second.loss == first.loss


def test_drive_is_left_alone_without_need_and_an_uploaded_picture_is_classified(session, tmp_path):
    start, colab = session
    person = start()
    (tmp_path / "me.png").parent.mkdir(exist_ok=True)
    Image.new("RGBA", (64, 50), (250, 10, 10, 255)).save(tmp_path / "me.png")
    colab.uploads = [{"me.png": (tmp_path / "me.png").read_bytes()}, {}]
    with small_world(person, tmp_path):
        said = person.run(DATASET="glyphs", EPOCHS=1, COMPARE=False, FAMILY_EPOCHS=1, UPLOAD=True)
        assert colab.mounted == 0 and "this is a test image" not in said
        assert set(person.names["picture"].flatten(1).unique(dim=1).flatten().tolist()) == {250, 10}
        cancelled = person.run(person.cell_of("UPLOAD"), DATASET="glyphs", UPLOAD=True, COMPARE=False)
        assert "this is a test image" in cancelled and colab.uploads == []
