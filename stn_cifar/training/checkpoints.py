"""Save and resume, safely: whole files or none, checked before they are believed.

A checkpoint is written after every epoch, and the last two are kept. It holds no random state:
every epoch draws its own from (seed, epoch), so a resumed run draws what the unbroken run drew.

File: what torch.save writes, a zip archive; `torch.load(path, weights_only=True)` reads it. The
archive's CRC-32, which torch does not look at, tell damage.
"""

import contextlib
import io
import os
import re
import reprlib
import warnings
import zipfile
from pathlib import Path

import torch

from .. import stn
from ..config import Config
from ..files import check_writable, typed_path, write_whole
from ..seeding import seeded

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

SCHEMA = 2  # of the content; another is not guessed at
ARCHIVE = b"PK\3\4"  # anything else torch.load reads by older code, the one of CVE-2025-32434
CONTENT = dict(config=dict, model=dict, optimizer=dict, history=list, input_shape=list,
               num_classes=int, threads=int)
KEEP = 2
NAME = re.compile(r"epoch-([0-9]{5}|[1-9][0-9]{5,})\.pt")  # others, epoch-7.pt too, are not ours
TEMPORARY = re.compile(rf"\.{NAME.pattern}\.[0-9a-f]{{16}}\.tmp")  # as files.write_whole names them
SHORT = reprlib.Repr()  # of a value in a file, which may be of any length
SHORT.maxstring = 200
FREE = ("name", "data_root", "device")  # may differ between a run and its continuation


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the file, what is wrong and what to do."""


@contextlib.contextmanager
def claim(folder: str | os.PathLike):
    """Within it, `folder` (made where it is missing) is this run's alone.

    CheckpointError where it cannot be written to, or another run has it. The kernel drops a killed
    run's claim. A file system without locks: a warning, and no protection.
    """
    folder = typed_path(folder)
    try:
        check_writable(folder)  # better told before hours of training than after
        os.listdir(folder)
    except OSError as error:
        raise CheckpointError(f"checkpoint_dir: {error}") from error
    with contextlib.ExitStack() as stack:
        if fcntl:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"checkpoint_dir: {folder} is in use by another run; name "
                                      "another, or wait until that run has ended") from None
            except OSError as error:
                warnings.warn(f"checkpoint_dir: {folder} lies on a file system without locks "
                              f"({error.strerror}); start no second run there", stacklevel=5)
        for leftover in filter(TEMPORARY.fullmatch, os.listdir(folder)):
            (folder / leftover).unlink()  # a killed run's: none but this one writes here now
        yield folder


def save_checkpoint(folder: Path, model, optimizer, history, config, **more) -> Path:
    """Write the state after the epoch `len(history)` to `folder`, whole or not at all; its path.

    more: numbers, text, lists and dicts of them, to keep along. CheckpointError where something
    else is among them: nothing is written that could not be read. OSError where the folder is full,
    gone or forbidden.
    """
    path = folder / f"epoch-{len(history):05}.pt"
    content = dict(schema=SCHEMA, config=config.to_dict(), model=model.state_dict(),
                   optimizer=optimizer.state_dict(), history=list(history),
                   input_shape=list(model.input_shape), num_classes=model.num_classes,
                   threads=torch.get_num_threads()) | more
    file = io.BytesIO()
    torch.save(content, file)
    try:
        _content(file)
    except Exception as error:
        raise CheckpointError(f"checkpoint_dir: epoch {len(history)} cannot be kept, as it could "
                              "not be read again; what callbacks add to history must be plain "
                              f"numbers and text: {error}") from error
    folder.stat()  # a drive that is gone: nothing may be made in its place, and be in its way later
    write_whole(path, file.getvalue())
    # later epochs were passed over as damaged: they are not ours to delete, and push nothing out
    with contextlib.suppress(OSError, CheckpointError):
        for _, old in [item for item in _numbered(folder) if item[0] <= len(history)][KEEP:]:
            old.unlink()
    return path


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The content of one checkpoint, and its `path`; tensors on the CPU.

    CheckpointError where it was damaged, or is of another schema. No code in it can run.
    """
    path = typed_path(path)
    try:
        with open(path, "rb") as file:
            content = _content(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file may raise anything
        what = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: not readable as a checkpoint: {what}") from error
    return content | dict(path=path)


def _content(file) -> dict:
    """What a checkpoint's open `file` holds; any exception where it was damaged, or is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(ARCHIVE)) != ARCHIVE:
        raise ValueError("cut off, or not a checkpoint of this program (since 0.2)")
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("would unpack to more than the file holds")
        if damaged := archive.testzip():
            raise ValueError(f"damaged: {damaged} is not as its checksum says")
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if "schema" not in content:
        raise ValueError("not written by fit: it holds no schema")
    if (schema := content["schema"]) != SCHEMA:
        raise ValueError(f"schema {schema!r}, of another version; this one reads {SCHEMA}")
    for key in (key for key, kind in CONTENT.items() if not isinstance(content.get(key), kind)):
        raise ValueError(f"holds no {key}")
    epochs = [row["epoch"] for row in content["history"]]
    if not epochs or epochs != list(range(1, len(epochs) + 1)):
        raise ValueError("history: must be of epochs 1, 2, 3 and so on")
    return content


def newest_checkpoint(folder: str | os.PathLike) -> dict | None:
    """The content of the newest good checkpoint in `folder`; None where it holds none at all.

    A bad one is named in a warning and passed over for the one before. None good, or a folder that
    cannot be listed: CheckpointError; nothing is deleted.
    """
    problems = []
    for epoch, path in _numbered(typed_path(folder)):
        try:
            content = read_checkpoint(path)
            if (inside := len(content["history"])) != epoch:
                raise CheckpointError(f"{path}: holds epoch {inside}, not that of its name")
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; going back to {path.name}", stacklevel=2)
        return content
    if problems:
        raise CheckpointError("no checkpoint here can be used; nothing was deleted: move them away "
                              "to start afresh, or name another checkpoint_dir\n  "
                              + "\n  ".join(problems))
    return None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in `folder` with their epochs, newest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:  # not "no checkpoint": the run would start anew over what is there
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror})") from error
    return sorted(((int(match[1]), folder / match[0]) for match in map(NAME.fullmatch, names)
                   if match), reverse=True)


def resume(folder: str | os.PathLike, model, optimizer, config, **same) -> dict | None:
    """Put model and optimizer into the newest good checkpoint's state; its content, or None.

    same: values kept with save_checkpoint that must be the same now, where its version kept them.
    ValueError, naming what differs, where the checkpoint is another run's; only FREE fields of the
    config may differ, and epochs, where nothing goes by them. CheckpointError where it does not
    fit. Then model and optimizer are as they were.
    """
    content = newest_checkpoint(folder)
    if content is None:
        return None
    path, epochs = content["path"], len(content["history"])
    saved = _config_fields(content) | {key: content.get(key, now) for key, now in same.items()}
    paced = config.schedule != "constant" or config.warmup or config.teacher_forcing
    free = FREE if paced else (*FREE, "epochs")
    differ = [f"{key}: {SHORT.repr(saved[key])} in the checkpoint, {value!r} now"
              for key, value in (config.to_dict() | same).items()
              if key not in free and saved[key] != value]
    if differ:
        raise ValueError(f"checkpoint_dir: {folder} holds another run; name another folder, or go "
                         "back to its values (of epochs too, where schedule, warmup or "
                         "teacher_forcing go by them)\n  " + "\n  ".join(differ))
    if epochs > config.epochs:
        raise ValueError(f"epochs: {config.epochs}, but {folder} stands after {epochs} already; "
                         "name another checkpoint_dir to train for fewer")
    _check_tensors(path, "model", content["model"], model.state_dict())
    state = optimizer.state_dict()  # its groups stay; each step sets their learning rates anew
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    buffers = {index: item["momentum_buffer"]
               for index, item in content["optimizer"]["state"].items()
               if item.get("momentum_buffer") is not None}
    _check_tensors(path, "optimizer/momentum_buffer", buffers,
                   {index: parameters.get(index, "missing") for index in buffers})
    # in the memory format of the parameters, which fused SGD takes for granted
    state["state"] = {index: dict(momentum_buffer=torch.empty_like(parameters[index]).copy_(buffer))
                      for index, buffer in buffers.items()}
    if content["threads"] != torch.get_num_threads() and config.torch_device().type == "cpu":
        warnings.warn(f"{path}: trained with {content['threads']} threads, goes on with "
                      f"{torch.get_num_threads()}: the last bits will differ from those of an "
                      "unbroken run; torch.set_num_threads sets their number", stacklevel=2)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(state)
    return content


def find_checkpoint(path: str | os.PathLike) -> dict:
    """The content of a checkpoint file, or of the newest good one in a folder; CheckpointError."""
    path = typed_path(path)
    content = newest_checkpoint(path) if os.path.isdir(path) else read_checkpoint(path)
    if content is None:
        raise CheckpointError(f"{path}: holds no checkpoint (epoch-00001.pt and so on)")
    return content


def load_model(path: str | os.PathLike, device: str = "auto") -> stn.STNClassifier:
    """The trained model of a checkpoint file, or of the newest good one in a folder.

    It is on `device` and in evaluation mode; its config is `model.config`. CheckpointError where
    there is none to be had, as of a model that build_model did not make; ValueError for a device
    that is not there.
    """
    return model_of(find_checkpoint(path), device)


def model_of(content: dict, device: str = "auto") -> stn.STNClassifier:
    """The trained model of a checkpoint's `content`, as `load_model` gives it."""
    target = Config(device=device).torch_device()
    path, fields = content["path"], _config_fields(content) | dict(device=device)
    try:
        made_of = Config(**fields), content["input_shape"], content["num_classes"]
        with torch.device("meta"):  # shapes without memory: the file must fill them
            needed = stn.assemble(*made_of)
    except Exception as error:  # from a config made to harm, anything
        raise CheckpointError(f"{path}: does not fit this version's models: {error}") from error
    try:
        made = needed.transformer.description()
        if content.get("by_hand") or content.get("transformer", made) != made:
            raise CheckpointError(f"{path}: is of a model that build_model did not make")
        _check_tensors(path, "model", content["model"], needed.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a model put together by hand is put together again, and "
                              "loads torch.load(path, weights_only=True)['model']") from None
    with seeded(0, torch.device("cpu")):  # the caller's random state is not ours to move
        model = stn.assemble(*made_of)
    model.load_state_dict(content["model"])
    return stn.place(model, target).eval()


def _config_fields(content: dict) -> dict:
    """The fields of the checkpoint's config; those that its version did not know, by default."""
    known = Config().to_dict()
    if unknown := content["config"].keys() - known.keys():
        raise CheckpointError(f"{content['path']}: written by a newer version; its config has "
                              f"{', '.join(sorted(map(str, unknown)))}, unknown here")
    return known | content["config"]


def _check_tensors(path: Path, entry: str, saved: dict, needed: dict) -> None:
    """CheckpointError unless `saved` has finite tensors of the names, shapes, types of `needed`."""
    for name in sorted(saved.keys() | needed.keys(), key=str):
        got, must = ((tuple(tensor.shape), tensor.dtype) if isinstance(tensor, torch.Tensor)
                     else reprlib.repr(tensor)
                     for tensor in (saved.get(name, "missing"), needed.get(name, "missing")))
        if got != must or not isinstance(got, tuple):
            raise CheckpointError(f"{path}: does not fit this version's models: {entry}/{name} is "
                                  f"{got}; must be {must}")
        # one number can pose as a million; non-finite ones would spoil the run without a word, but
        # for those that the model was made with, such as a mask's
        if (saved[name].untyped_storage().nbytes() < saved[name].nbytes
                or not (saved[name].isfinite().all() or (
                    not needed[name].is_meta and torch.equal(saved[name], needed[name].cpu())))):
            raise CheckpointError(f"{path}: {entry}/{name} has numbers that are not finite, or "
                                  "fewer of them than its shape says")
