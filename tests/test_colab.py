"""Colab's ways, against stand-ins: form fields, which notebook is open, upload, Google Drive."""

import ast
import contextlib
import http.server
import json
import re
import sys
import threading
import types
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from test_notebook import PATH, Person, Setup, StandIns, code_of

from stn_cifar.presets import PRESETS
from stn_cifar.transforms import FAMILIES


@pytest.fixture(scope="module")
def code():
    return code_of(nbformat.read(PATH, as_version=4))


# ---- form fields

# As Colab's own notebook on forms has them: a list of choices in JSON, or a type, or both.
FIELD = re.compile(r"(?P<name>\w+) = (?P<value>.+?)  # @param (?P<choices>\[.*?\])? ?"
                   r"(?P<options>\{.*\})?")
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
    # "taught" has a section of its own
    assert found["PRESET"][1] == [name for name in PRESETS if name != "taught"]
    assert found["TRANSFORM"][1] == ["", *FAMILIES]
    assert found["FAMILY"][1] == list(FAMILIES)
    assert found["STN"][1] == ["None", "True", "False"]


@pytest.mark.parametrize("line", [
    'STN = None  # @param [None, True, False] {type:"raw"}',  # no JSON
    "EPOCHS = 3  # @param", 'NAME = "b"  # @param ["a"]', 'N = "3"  # @param {type:"integer"}',
    'N = True  # @param {type:"integer"}'])
def test_a_field_that_colab_cannot_show_is_found_out(line):
    cell = types.SimpleNamespace(source=line)
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        test_every_form_field_is_one_that_colab_can_show_and_holds_a_value_it_can_have([cell])


def test_cells_with_fields_have_a_title(code):
    for cell in code:
        if "@param" in cell.source:
            assert re.match(r"# @title \S", cell.source)


# ---- which notebook is open

GITHUB = "fileId=https%3A//github.com/{}/blob/{}/notebooks/stn_cifar10.ipynb"


@contextlib.contextmanager
def session_interface(answer):
    """Colab's own server: answer(handler) replies to every request; gives its port."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/api/sessions"
            with contextlib.suppress(OSError):  # the other side has hung up
                answer(self)

        def log_message(self, *_):
            """Nothing on the terminal."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def reply(content, status=200):
    """An answer for session_interface: `content` as JSON, or as it is."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def answer(handler):
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(body)
    return answer


def opened(path):
    """The reply of a session with the notebook at `path`."""
    return reply([dict(name="stn_cifar10.ipynb", path=path, type="notebook",
                       kernel=dict(id="1", name="python3"))])


@pytest.fixture
def setup(code, tmp_path, monkeypatch):
    """A Setup in an empty folder, and a function that puts it into Colab."""
    setup = Setup(code, tmp_path, monkeypatch)

    def in_colab(answer, **settings):
        with session_interface(answer) as port:
            monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
            monkeypatch.setenv("KMP_TARGET_PORT", str(port))
            return setup.run(**settings)
    return setup, in_colab


@pytest.mark.parametrize(("path", "source"), [
    (GITHUB.format("someone/stn_cifar", "main"), "https://github.com/someone/stn_cifar@main"),
    (GITHUB.format("a-fork.er/stn_cifar", "feature/warp-2"),
     "https://github.com/a-fork.er/stn_cifar@feature/warp-2"),
    (GITHUB.format("someone/stn_cifar", "main").removeprefix("fileId="),
     "https://github.com/someone/stn_cifar@main"),
    ("https%3A%2F%2Fgithub.com%2Fa%2Fb%2Fblob%2Fv0.2%2Fnotebooks%2Fcopy.ipynb",
     "https://github.com/a/b@v0.2")])
def test_opened_from_a_repository_that_very_ref_is_installed(setup, path, source):
    setup, in_colab = setup
    in_colab(opened(path))
    assert setup.installed == [f"git+{source}"]


def test_the_settings_come_before_what_colab_knows(setup):
    setup, in_colab = setup
    answer = opened(GITHUB.format("someone/stn_cifar", "main"))
    in_colab(answer, REF="v0.1")
    in_colab(answer, REPO_URL="https://example.org/other/one")
    assert setup.installed == ["git+https://github.com/someone/stn_cifar@v0.1",
                               "git+https://example.org/other/one"]


@pytest.mark.parametrize("path", [
    "fileId=1AbCdEfGhIjKlMnOpQrStUv", "fileId=/v2/external/notebooks/upload.ipynb",
    "stn_cifar10.ipynb", GITHUB.format("gist", "main").replace("github.com", "example.org"),
    "fileId=https%3A//github.com/a/b/blob/main/elsewhere.ipynb",
    "fileId=https%3A//github.com/a/b;touch%20hit/blob/main/notebooks/x.ipynb", ""])
def test_from_drive_or_uploaded_it_says_what_to_do(setup, path):
    setup, in_colab = setup
    with pytest.raises(ValueError, match="Set REPO_URL in the settings") as told:
        in_colab(opened(path))
    assert "one-file notebook" in str(told.value) and setup.pip == []


def test_a_ref_that_is_none_reaches_no_pip(setup):
    setup, in_colab = setup
    with pytest.raises(ValueError, match="REF: "):
        in_colab(opened(GITHUB.format("a/b", "main%3Btouch hit")))
    assert setup.pip == []


@pytest.mark.parametrize("answer", [
    reply([]), reply({}), reply([{}]), reply([dict(path=None)]), reply([dict(path=7)]),
    reply(b"no JSON"), reply(b"\xff\xfe"), reply(b""), reply(b"[" * 100_000), reply([], status=404),
    reply([], status=500), lambda handler: None])
def test_a_broken_interface_is_none(setup, answer):
    setup, in_colab = setup
    with pytest.raises(ValueError, match="Set REPO_URL in the settings"):
        in_colab(answer)
    in_colab(answer, REPO_URL="https://example.org/a/b")
    assert setup.installed == ["git+https://example.org/a/b"]


@pytest.mark.parametrize("drips", [False, True])
def test_a_slow_interface_is_given_up_after_its_time(setup, drips):
    """Also one that sends a byte now and then, which no limit on silence ends."""
    setup, in_colab = setup
    assert sum(source.count("timeout=5") for source in setup.sources) == 2
    setup.sources = [source.replace("timeout=5", "timeout=0.5") for source in setup.sources]
    over = threading.Event()

    def slow(handler):
        handler.send_response(200)
        handler.end_headers()
        while drips and not over.wait(0.1):
            handler.wfile.write(b" ")
            handler.wfile.flush()
        over.wait()

    at_last = threading.Timer(60, over.set)
    at_last.start()
    try:
        in_colab(slow, REPO_URL="https://example.org/a/b")
        assert not over.is_set(), "it waited for the interface"
    finally:
        at_last.cancel()
        over.set()
    assert setup.installed == ["git+https://example.org/a/b"]


# ---- a session


class Colab:
    """Stands in for the module google.colab: a Drive to mount, and a person who uploads."""

    def __init__(self):
        self.mounted, self.uploads = [], []
        self.drive = types.SimpleNamespace(mount=self.mounted.append)
        self.files = types.SimpleNamespace(upload=lambda: self.uploads.pop(0))


@pytest.fixture
def session(code, tmp_path, monkeypatch):
    """(a Person in Colab, StandIns, Colab)."""
    monkeypatch.chdir(tmp_path)
    colab = Colab()
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=colab))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    person = Person(code)
    return person, StandIns(person, monkeypatch), colab


@pytest.mark.parametrize("field", ["CHECKPOINT_DIR", "DATA_ROOT"])
def test_drive_is_mounted_before_the_data_is_read_where_a_folder_lies_on_it(session, field):
    person, seen, colab = session
    before = []
    colab.drive.mount = lambda place: (colab.mounted.append(place), before.extend(seen.loads))
    place = "/content/drive/MyDrive/stn"
    person.run(last=person.cell_of("test, train ="), **{field: place})
    assert colab.mounted == ["/content/drive"] and before == []
    assert seen.loads[0].data_root == (place if field == "DATA_ROOT" else None)
    assert seen.fits[0].checkpoint_dir == (place if field == "CHECKPOINT_DIR" else None)


def test_drive_is_left_alone_without_need(session):
    person, _, colab = session
    person.run(last=person.cell_of("test, train ="), CHECKPOINT_DIR="/content/kept")
    assert colab.mounted == []


def test_an_uploaded_picture_is_classified_and_a_cancelled_upload_is_no_error(session):
    person, seen, colab = session
    Image.new("RGBA", (64, 50), (250, 10, 10, 255)).save("me.png")
    colab.uploads = [{"me.png": Path("me.png").read_bytes()}, {}]
    said = person.run(EPOCHS=1, UPLOAD=True)
    assert "this is a test image" not in said
    picture = next(drawing for drawing in seen.drawn if drawing.name == "single_image").given[1]
    assert set(picture.flatten(1).unique(dim=1).flatten().tolist()) == {250, 10}
    cancelled = person.run(person.cell_of("UPLOAD"), EPOCHS=1, UPLOAD=True)
    assert "this is a test image" in cancelled and colab.uploads == []
