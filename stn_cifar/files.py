"""Paths that a person types, and files that are written whole or not at all."""

import argparse
import contextlib
import os
import secrets
import tempfile
from pathlib import Path


def typed_path(value: str | os.PathLike) -> Path:
    """The path that a person means: without spaces and quotes around it, ~, ~user, $VAR followed.

    Raises ValueError where nothing is left, or a variable or user in it is unknown.
    """
    text = os.fspath(value).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if not text or "\0" in text:
        raise ValueError(f"path: {value!r}; must name a file or a folder")
    path = os.path.expanduser(os.path.expandvars(text))
    if path.startswith("~") or ("$" in path and not os.path.exists(path)):
        raise ValueError(f"path: {value!r} names a user or a variable that is not known here")
    return Path(path)


def path_argument(text: str) -> Path:
    """`typed_path` for argparse, which would replace a ValueError's message by one of its own."""
    try:
        return typed_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def write_whole(path: str | os.PathLike, content: bytes | str) -> Path:
    """Write `content` to `path`; whoever reads sees the old file or the new one, never half.

    Its folder is made where it is missing. OSError, with the path, where it cannot be written: then
    what was there is as it was, and nothing is left beside it.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    # an unpredictable name, opened exclusively: a link planted there is not followed
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{path}: cannot be written ({reason})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def check_new(path: Path) -> None:
    """FileExistsError where there is something at `path`, which might be somebody's work."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path}: is there already; name another file, or delete it first")


def check_writable(folder: Path) -> None:
    """Make `folder` where it is missing; OSError, with its path, where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror or error}); name another "
                      "folder") from error
