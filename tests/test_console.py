"""Printing that never ends or spoils a run, whatever standard output is."""

import io
import sys
import types

import pytest

from stn_cifar import Config, Data, build_model, fit
from stn_cifar.console import progress_bar, say


class Tee:
    """As people write it: two files in one, and nothing else that a file has."""

    def __init__(self, *files):
        self.files = files

    def write(self, text):
        for file in self.files:
            file.write(text)


class Raising:
    """A standard output on which everything fails, in its own way."""

    def __init__(self, error):
        self.error = error

    def _fail(self, *_):
        raise self.error

    write = flush = isatty = _fail


def closed():
    file = io.StringIO()
    file.close()
    return file


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)


BAD = {
    "none": lambda: None,
    "closed": closed,
    "without anything": types.SimpleNamespace,
    "tee": lambda: Tee(io.StringIO(), io.StringIO()),
    "tee of a closed one": lambda: Tee(io.StringIO(), closed()),
    "ascii": ascii_only,
    "full disk": lambda: Raising(OSError(28, "No space left on device")),
    "broken pipe": lambda: Raising(BrokenPipeError()),
    "of ones own": lambda: Raising(RuntimeError("reentrant call")),
    "never any encoding": lambda: Raising(UnicodeEncodeError("x", "", 0, 1, "no")),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_printing_ends_nothing(monkeypatch, make):
    monkeypatch.setattr(sys, "stdout", make())
    say("Übung macht den Meister \N{SNOWMAN}")
    progress = progress_bar(10, 2)
    progress.update()
    progress.set_postfix_str("epoch 1/2, größer \N{SNOWMAN}")
    progress.write("zwischendurch \N{SNOWMAN}", file=progress.fp)
    progress.close()


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_run_goes_on_whatever_standard_output_is(monkeypatch, glyph_data, tmp_path, make):
    """Also one that is stopped, with a path that the terminal cannot write."""
    def stop(model, history):
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", make())
    data = Data(glyph_data.train[:16], None, None, glyph_data.classes)
    config = Config(device="cpu", precision="fp32", epochs=3, batch_size=16)
    folder = tmp_path / "prüfung \N{SNOWMAN}"
    history = fit(build_model(config), data, config, folder, on_epoch_end=stop)
    assert [row["epoch"] for row in history] == [1, 2]
    assert len(list(folder.glob("*.pt"))) == 2


def test_what_can_be_written_is(monkeypatch):
    parts = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", Tee(*parts))
    say("both")
    assert [part.getvalue() for part in parts] == ["both\n"] * 2


def test_output_goes_where_standard_output_is_at_the_moment(monkeypatch):
    """A notebook or a test redirects it in the midst of a run."""
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", first)
    progress = progress_bar(10, 0)
    monkeypatch.setattr(sys, "stdout", second)
    progress.write("later", file=progress.fp)
    progress.close()
    assert "later" in second.getvalue() and "later" not in first.getvalue()
