"""Paths as people type them, and files that are written whole or not at all."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_cifar import files
from stn_cifar.files import typed_path, write_whole


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE", "PLACE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("typed, meant", [
    ("runs/a", "runs/a"), (Path("runs/a"), "runs/a"), (" runs/a\n", "runs/a"),
    ("'runs/a'", "runs/a"), ('"my runs/a"', "my runs/a"), (' " runs/a " ', "runs/a"),
    ("~/a", "{0}/a"), ("~", "{0}"), ("$PLACE/a", "{0}/a"), ("${{PLACE}}/a", "{0}/a"),
    ("'~/a b'", "{0}/a b"), ("a'b", "a'b"), ("'a", "'a"), (".", "."), ("a~b", "a~b")])
def test_the_path_that_is_meant(home, typed, meant):
    typed = typed.format(home) if isinstance(typed, str) else typed
    assert typed_path(typed) == Path(meant.format(home))


@pytest.mark.parametrize("typed", ["", "  ", "''", '" "', "a\0b"])
def test_no_path_at_all(typed):
    with pytest.raises(ValueError, match=r"path: .*; must name a file or a folder"):
        typed_path(typed)


@pytest.mark.parametrize("typed", ["$NOWHERE/a", "${NOWHERE}", "~no_such_user_here/a"])
def test_what_is_not_known_is_said(home, typed):
    with pytest.raises(ValueError, match="names a user or a variable that is not known here"):
        typed_path(typed)


@given(st.text("ab .-_=%&é漢", min_size=1))
def test_a_plain_name_means_itself(name):
    if name.strip():
        assert typed_path(name) == typed_path(f"'{name}'") == Path(name.strip())


# --- write_whole


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path):
    path = write_whole(tmp_path / "a" / "b.txt", "ä\r\n")
    assert path == tmp_path / "a" / "b.txt" and path.read_bytes() == b"\xc3\xa4\r\n"
    write_whole(str(path), b"\0\xff")
    assert path.read_bytes() == b"\0\xff" and os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("breaks", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_if_it_cannot_be_written_all_is_as_it_was(tmp_path, monkeypatch, breaks, error):
    path = write_whole(tmp_path / "record.json", "old")

    def broken(*_):
        assert len(os.listdir(tmp_path)) == 2  # or the last line would prove nothing
        raise error

    monkeypatch.setattr(files.os, breaks, broken)
    with pytest.raises(type(error)) as caught:
        write_whole(path, "new")
    if isinstance(error, OSError):
        assert caught.value.errno == 28
        assert f"{path}: cannot be written (No space left on device)" in str(caught.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("place", ["a file/below", "a folder"])
def test_a_file_or_folder_in_the_way_is_named(tmp_path, place):
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(OSError, match=f"{place}: cannot be written"):
        write_whole(tmp_path / place, "new")
    assert sorted(os.listdir(tmp_path)) == ["a file", "a folder"]
    assert (tmp_path / "a file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_a_link_planted_at_the_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    """The name cannot be foreseen; and if it were, it is opened exclusively."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "foreseen")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, tmp_path / ".record.json.foreseen.tmp")
    with pytest.raises(OSError, match="cannot be written"):
        write_whole(tmp_path / "record.json", "new")
    assert victim.read_text() == "precious" and not (tmp_path / "record.json").exists()


def test_readers_never_see_half_and_writers_never_disturb_each_other(tmp_path):
    path, contents = tmp_path / "shared", [bytes([k]) * 200_000 for k in range(4)]
    write_whole(path, contents[0])
    problems, done = [], threading.Event()

    def write(content):
        try:
            for _ in range(15):
                write_whole(path, content)
        except OSError as error:
            problems.append(error)

    def read():
        while not done.is_set():
            if path.read_bytes() not in contents:
                problems.append("half")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert problems == [] and os.listdir(tmp_path) == ["shared"]
