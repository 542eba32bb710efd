"""Save and resume, safely: whole files or none, checked before they are believed, unable to run code.

A checkpoint is written after every epoch, and the last two are kept. It holds no random state: every epoch draws its
own from (seed, epoch), so a run that goes on after epoch n draws what the run that was never interrupted drew.

File: MAGIC, the length of the content (8 bytes, big-endian), its SHA-256, the content as torch.save wrote it.
"""

import contextlib
import hashlib
import io
import os
import time
import warnings
import zipfile
from pathlib import Path

import torch

from .config import Config
from .stn import STNClassifier, build_model

MAGIC = b"STNCIFAR"
HEADER = len(MAGIC) + 8 + 32
SCHEMA = 1  # of the content; a newer one is not guessed at
MAX_BYTES = 2**31  # far above any model here; a larger file is not read into memory
KEEP = 2
CONTENT = dict(config=dict, model=dict, optimizer=dict, history=list)
STALE = 3600  # seconds after which a temporary file is no longer anybody's: writing takes seconds
FREE = ("name", "data_root", "device", "epochs")  # may differ between a run and its continuation


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the file, what is wrong and what to do."""


def save_checkpoint(folder: Path, model, optimizer, history: list[dict], config: Config, **more) -> Path:
    """Write the state after the epoch `len(history)`: to a temporary file, synced to the disk, then renamed.

    Whatever happens meanwhile, the checkpoints before it stay whole. more: plain values or tensors to keep along.
    Raises OSError where the folder is full, gone or forbidden.
    """
    content = io.BytesIO()
    torch.save(dict(schema=SCHEMA, config=config.to_dict(), model=model.state_dict(),
                    optimizer=optimizer.state_dict(), history=history, **more), content)
    content = content.getvalue()
    folder = Path(folder)
    path = folder / f"epoch-{len(history):05}.pt"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(MAGIC + len(content).to_bytes(8, "big") + hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    # later epochs were passed over as damaged: they are not ours to delete, and push nothing out
    old = [file for epoch, file in _numbered(folder) if epoch <= len(history)][KEEP:]
    for file in [*old, *folder.glob(".epoch-*.tmp")]:
        with contextlib.suppress(OSError):
            if file in old or time.time() - file.stat().st_mtime > STALE:  # left by a process that was killed
                file.unlink()
    return path


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """The content of one checkpoint, tensors on `device`; CheckpointError unless every byte is as it was written."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if not HEADER < size <= MAX_BYTES:
            raise CheckpointError(f"{path}: {size} bytes; empty, cut off, or no checkpoint of ours")
        with open(path, "rb") as file:
            header = file.read(HEADER)
            if not header.startswith(MAGIC):
                raise CheckpointError(f"{path}: not a checkpoint of this program")
            if int.from_bytes(header[len(MAGIC):len(MAGIC) + 8], "big") != size - HEADER:
                raise CheckpointError(f"{path}: cut off, or longer than it was written")
            content = file.read(size - HEADER)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).digest() != header[len(MAGIC) + 8:]:
        raise CheckpointError(f"{path}: damaged, its content does not have the checksum it was written with")
    try:
        # what does not start as an archive, torch.load reads as an old format, whose reader ran code (CVE-2025-32434)
        if not content.startswith(b"PK"):
            raise CheckpointError(f"{path}: not an archive as torch.save writes it")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.save compresses nothing: no bombs
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise CheckpointError(f"{path}: would unpack to more than the file holds")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        if (schema := state["schema"]) != SCHEMA:
            raise CheckpointError(f"{path}: written by another version (schema {schema}, this one reads {SCHEMA})")
        if wrong := [key for key, kind in CONTENT.items() if not isinstance(state.get(key), kind)]:
            raise CheckpointError(f"{path}: holds no {', '.join(wrong)}")
    except CheckpointError:
        raise
    except Exception as error:  # a file made to harm may raise anything
        raise CheckpointError(f"{path}: not readable as a checkpoint ({type(error).__name__}: {error})") from error
    return state


def newest_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict | None:
    """The content of the newest good checkpoint in `folder`; None where there are no checkpoints at all.

    A bad one is named in a warning and passed over for the one before. None good: CheckpointError; nothing is deleted.
    """
    problems = []
    for _, path in _numbered(folder):
        try:
            state = read_checkpoint(path, device)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; going back to {path.name}", stacklevel=2)
        return state
    if problems:
        raise CheckpointError("no checkpoint here can be used; nothing was deleted: move them away to start afresh, "
                              "or name another checkpoint_dir\n  " + "\n  ".join(problems))
    return None


def resume(folder: Path, model, optimizer, config: Config, **same) -> dict | None:
    """Put model and optimizer into the newest good checkpoint's state; returns its content, None if there is none.

    The folder is made where it is missing. CheckpointError if there are checkpoints and none is good. ValueError,
    naming what differs, if the newest good one is of another run: another config (only FREE fields may differ), or
    another value of one of `same`, kept with save_checkpoint.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:  # better told before hours of training than after
        raise CheckpointError(f"checkpoint_dir: {folder} cannot be made ({error.strerror}); name another") from error
    state = newest_checkpoint(folder, config.torch_device())
    if state is None:
        return None
    # fields that the version which wrote it did not know have their defaults, which change nothing
    saved = Config().to_dict() | state["config"] | {key: state.get(key) for key in same}
    now = config.to_dict() | same
    differ = [f"{key}: {saved.get(key)!r} in the checkpoint, {value!r} now"
              for key, value in now.items() if key not in FREE and saved.get(key) != value]
    if differ:
        raise ValueError(f"checkpoint_dir: {folder} holds another run; name another folder, or go back to its "
                         "values\n  " + "\n  ".join(differ))
    paced = config.schedule != "constant" or config.warmup or config.pose_curriculum
    if paced and saved.get("epochs") != config.epochs:
        raise ValueError(f"epochs: {config.epochs}, but {folder} holds a run planned for {saved.get('epochs')}, and "
                         f"schedule={config.schedule!r} with warmup={config.warmup} and pose_curriculum="
                         f"{config.pose_curriculum} go by that; name another checkpoint_dir")
    if len(state["history"]) > config.epochs:
        raise ValueError(f"epochs: {config.epochs}, but {folder} stands after {len(state['history'])} already; "
                         "name another checkpoint_dir to train for fewer")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: does not fit this version's models ({error})") from error
    return state


def load_model(path: str | Path, device: str = "auto") -> STNClassifier:
    """The trained model of a checkpoint file, or of the newest good one in a folder; its config is `model.config`.

    The model is on `device` and in evaluation mode. CheckpointError where there is none to be had.
    """
    path = Path(path)
    state = newest_checkpoint(path) if path.is_dir() else read_checkpoint(path)
    if state is None:
        raise CheckpointError(f"{path}: holds no checkpoint (epoch-*.pt)")
    try:
        config = Config(**{**state["config"], "device": device})
        with torch.device("meta"):  # shapes without memory: none is taken before it is known that the file fills it
            needed = {name: tensor.shape for name, tensor in STNClassifier(config).state_dict().items()}
        if needed != {name: tensor.shape for name, tensor in state["model"].items()
                      if tensor.nbytes <= tensor.untyped_storage().nbytes()}:  # one number can pose as a million
            raise ValueError("its weights are not those of its config")
        model = build_model(config)
        model.load_state_dict(state["model"])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this version's models ({error})") from error
    return model.eval()


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in `folder` with their epochs, newest first; files of other names are none of ours."""
    paths = [path for path in Path(folder).glob("epoch-*.pt") if path.stem.removeprefix("epoch-").isdecimal()]
    return sorted(((int(path.stem.removeprefix("epoch-")), path) for path in paths), reverse=True)
