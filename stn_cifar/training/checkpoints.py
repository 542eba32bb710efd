"""Save and resume, safely: whole files or none, checked before they are believed.

A checkpoint is written after every epoch, and the last two are kept. It holds no random state:
every epoch draws its own from (seed, epoch), so a resumed run draws what the unbroken run drew.

File: what torch.save writes, with the SHA-256 of all before it as the zip archive's comment.
`torch.load(path, weights_only=True)` reads it; a single altered bit anywhere is noticed here.
"""

import contextlib
import hashlib
import io
import math
import os
import pickletools
import platform
import re
import reprlib
import time
import warnings
import zipfile
from pathlib import Path

import torch

from .. import stn
from ..config import Config
from ..files import typed_path, write_whole
from ..seeding import seeded

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

SCHEMA = 2  # of the content; another is not guessed at. 1 was a container of our own:
SCHEMA_1 = b"STNCIFAR"
ARCHIVE = b"PK\3\4"  # anything else torch.load reads by older code, the one of CVE-2025-32434
SEAL = b"sha256:"
SEALED = len(SEAL) + 64  # bytes of the comment
MAX_BYTES = 2**33  # 1.7 times the largest model of any Config; more is not read into memory
KEEP = 2
NAME = re.compile(r"epoch-([0-9]{5}|[1-9][0-9]{5,})\.pt")  # others, epoch-7.pt too, are not ours
TEMPORARY = re.compile(rf"\.{NAME.pattern}\.[0-9a-f]{{16}}\.tmp")  # as files.write_whole names them
CONTENT = dict(config=dict, model=dict, optimizer=dict, history=list, input_shape=list,
               num_classes=int, threads=int)
FREE = ("name", "data_root", "device")  # may differ between a run and its continuation
# what torch.save writes for dicts, lists, tuples, numbers, text and tensors, and nothing else
OPCODES = frozenset("""PROTO STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    SETITEM SETITEMS APPEND APPENDS GLOBAL REDUCE BINPERSID BINUNICODE BININT BININT1 BININT2 LONG1
    BINFLOAT NONE NEWTRUE NEWFALSE""".split())  # noqa: SIM905 - words in a table
ITEM_SIZES = {f"torch {kind}Storage": size for kind, size in dict(
    Float=4, Double=8, Half=2, BFloat16=2, Long=8, Int=4, Byte=1, Bool=1).items()}
GLOBALS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", *ITEM_SIZES)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the file, what is wrong and what to do."""


@contextlib.contextmanager
def claim(folder: str | os.PathLike):
    """Within it, `folder` (made where it is missing) is this run's alone.

    CheckpointError where it cannot be written to, or another run has it: then it says which. The
    kernel drops a killed run's claim. A file system without locks: a warning, and no protection.
    """
    folder = typed_path(folder)
    path = folder / ".in-use"
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # no link planted there
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115
    except OSError as error:  # better told before hours of training than after
        raise CheckpointError(f"checkpoint_dir: {folder} cannot be made or written to "
                              f"({error.strerror}); name another") from error
    with file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(200).decode(errors="replace") or "another process"
            raise CheckpointError(f"checkpoint_dir: {folder} is in use by {holder}; name another, "
                                  "or wait until that run has ended") from None
        except OSError as error:
            warnings.warn(f"checkpoint_dir: {folder} lies on a file system without locks "
                          f"({error.strerror}); start no second run there", stacklevel=5)
        with contextlib.suppress(OSError):
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()} since {time.ctime()}".encode())
            for name in filter(TEMPORARY.fullmatch, os.listdir(folder)):
                (folder / name).unlink()  # a killed run's: none but this one writes here now
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _lock(file):
    """Lock `file` until it is closed; BlockingIOError or PermissionError where another has it."""
    if os.name == "nt":
        file.seek(2**30)  # what is locked, no other process can read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file.fileno()).st_nlink:  # opened while the run before took it away
            raise BlockingIOError


def save_checkpoint(folder: str | os.PathLike, model, optimizer, history, config, **more) -> Path:
    """Write the state after the epoch `len(history)` to `folder`, whole or not at all; its path.

    more: finite numbers, text, lists and dicts of them, to keep along; ValueError for anything else
    in it or in the history. OSError where the folder is full, gone or forbidden. CheckpointError,
    and nothing written, where the file could not be read again.
    """
    folder = typed_path(folder)
    path = folder / f"epoch-{len(history):05}.pt"
    content = dict(schema=SCHEMA, config=config.to_dict(), model=_on_cpu(model.state_dict()),
                   optimizer=_on_cpu(optimizer.state_dict()), history=list(history),
                   input_shape=list(model.input_shape), num_classes=model.num_classes,
                   threads=torch.get_num_threads()) | more
    _check_plain("", content | dict(model=None, optimizer=None))
    file = io.BytesIO()
    torch.save(content, file)
    file.getbuffer()[-2:] = SEALED.to_bytes(2, "little")  # an archive ends in its comment's length
    seal = hashlib.sha256(file.getbuffer()).hexdigest().encode()
    file.seek(0, os.SEEK_END)
    file.write(SEAL + seal)
    _check_size(path, file.tell())
    _content(path, file.getvalue(), "cpu")
    folder.stat()  # a drive that is gone: nothing may be made in its place, and be in its way later
    write_whole(path, file.getvalue())
    # later epochs were passed over as damaged: they are not ours to delete, and push nothing out
    with contextlib.suppress(OSError, CheckpointError):
        for _, old in [item for item in _numbered(folder) if item[0] <= len(history)][KEEP:]:
            old.unlink()
    return path


def _on_cpu(state):
    """`state` in plain dicts, each tensor in memory of its own: any machine can read it."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return torch.empty_like(state, device="cpu").copy_(state)
    return state


def read_checkpoint(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict:
    """The content of one checkpoint, and its `path`; tensors on `device`.

    CheckpointError unless every bit is as it was written, the schema known, all numbers finite, the
    epochs 1 to n. No code in it can run, and it takes no more memory than a few times its size.
    """
    path = typed_path(path)
    try:
        size = path.stat().st_size
        _check_size(path, size)
        with open(path, "rb") as file:
            start = file.read(len(SCHEMA_1))
            file.seek(size - SEALED)
            sealed = file.read(len(SEAL)) == SEAL
            if start == SCHEMA_1:
                raise CheckpointError(f"{path}: written by a version before the redesign; train "
                                      "anew, or use commit 130a829")
            if not (start.startswith(ARCHIVE) and sealed):
                raise CheckpointError(f"{path}: cut off, or not a checkpoint of this program")
            file.seek(0)
            content = file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return _content(path, content, device) | dict(path=path)


def _check_size(path: Path, size: int) -> None:
    if not len(SCHEMA_1) + SEALED < size <= MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes; must be more than {SEALED}, and at most "
                              f"{MAX_BYTES}")


def _content(path: Path, file: bytes, device) -> dict:
    """What the bytes `file` of a checkpoint hold; CheckpointError, naming `path`, if not sound."""
    if hashlib.sha256(memoryview(file)[:-SEALED]).hexdigest().encode() != file[len(SEAL) - SEALED:]:
        raise CheckpointError(f"{path}: damaged, not as its checksum says that it was written")
    try:
        _check_archive(file)
        content = torch.load(io.BytesIO(file), map_location=device, weights_only=True)
        if (schema := content["schema"]) != SCHEMA:
            raise ValueError(f"schema {schema!r}, of another version; this one reads {SCHEMA}")
        for key in (key for key, kind in CONTENT.items() if type(content.get(key)) is not kind):
            raise ValueError(f"holds no {key}")
        _check_plain("", content | dict(model=None, optimizer=content["optimizer"]["param_groups"]))
        if not all(type(item) is dict for item in content["optimizer"]["state"].values()):
            raise ValueError("optimizer/state: must be a dict for each parameter")
        epochs = [row["epoch"] for row in content["history"]]
        if not epochs or epochs != list(range(1, len(epochs) + 1)):
            raise ValueError("history: must be of epochs 1, 2, 3 and so on")
    except Exception as error:  # a file made to harm may raise anything
        what = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: not readable as a checkpoint: {what}") from error
    return content


def _check_archive(file: bytes) -> None:
    """ValueError unless torch.load makes data of `file`, and no more than it holds.

    With weights_only=True it runs no code, but lets 491 bytes ask for torch.Tensor(2**40), and 2.4
    believes a tensor that claims more numbers than its record has: it reads beyond it.
    """
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        entries = archive.infolist()
        names = {entry.filename.lower() for entry in entries}  # upper case is the same to torch
        if (sum(entry.file_size for entry in entries) > len(file) or entries[0].header_offset
                or len(names) < len(entries) or not all(n.startswith("archive/") for n in names)):
            raise ValueError("would unpack to more than the file holds, or to something else")
        pickled = archive.read("archive/data.pkl")
    sizes = {entry.filename.removeprefix("archive/data/"): entry.file_size for entry in entries}
    trace, memo = [], {}
    for opcode, value, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = trace[-1]
            continue
        if name in ("BINGET", "LONG_BINGET"):
            name, value = memo[value]
            if name not in ("BINUNICODE", "GLOBAL"):  # lists of the same lists grow exponentially
                raise ValueError("refers twice to one object")
        if name not in OPCODES or (name == "GLOBAL" and value not in GLOBALS):
            raise ValueError(f"holds more than tensors, numbers and text ({name} {value})")
        trace.append((name, value))
        if name == "BINPERSID":
            match trace[-8:-1]:
                case [("MARK", _), (_, "storage"), ("GLOBAL", kind), ("BINUNICODE", key),
                      ("BINUNICODE", _), (_, int(count)), ("TUPLE", _)] if (
                          sizes.pop(key, None) == count * ITEM_SIZES.get(kind, 0)):
                    continue
            raise ValueError("a tensor claims other numbers than the file holds")


def _check_plain(entry: str, value) -> None:
    """ValueError, naming the entry, unless all in `value` is finite numbers, text and None."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(f"{entry}/{key}".lstrip("/"), item)
    elif type(value) not in (int, float, bool, str, type(None)) or (
            type(value) is float and not math.isfinite(value)):
        raise ValueError(f"{entry}: {reprlib.repr(value)}; must be a finite number or text")


def newest_checkpoint(folder: str | os.PathLike, device: torch.device | str = "cpu") -> dict | None:
    """The content of the newest good checkpoint in `folder`; None where it holds none at all.

    A bad one is named in a warning and passed over for the one before. None good, or a folder that
    cannot be listed: CheckpointError; nothing is deleted.
    """
    problems = []
    for epoch, path in _numbered(typed_path(folder)):
        try:
            content = read_checkpoint(path, device)
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

    same: values kept with save_checkpoint that must be the same now. ValueError, naming what
    differs, where the checkpoint is another run's; only FREE fields of the config may differ, and
    epochs, where nothing goes by them. CheckpointError where it does not fit. Then model and
    optimizer are as they were.
    """
    content = newest_checkpoint(folder)
    if content is None:
        return None
    path, epochs = content["path"], len(content["history"])
    saved = _config_fields(content) | {key: content.get(key) for key in same}
    paced = config.schedule != "constant" or config.warmup or config.teacher_forcing
    free = FREE if paced else (*FREE, "epochs")
    differ = [f"{key}: {reprlib.repr(saved[key])} in the checkpoint, {value!r} now"
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


def load_model(path: str | os.PathLike, device: str = "auto") -> stn.STNClassifier:
    """The trained model of a checkpoint file, or of the newest good one in a folder.

    It is on `device` and in evaluation mode; its config is `model.config`. CheckpointError where
    there is none to be had; ValueError for a device that is not there.
    """
    target = Config(device=device).torch_device()
    path = typed_path(path)
    content = newest_checkpoint(path) if os.path.isdir(path) else read_checkpoint(path)
    if content is None:
        raise CheckpointError(f"{path}: holds no checkpoint (epoch-00001.pt and so on)")
    path, fields = content["path"], _config_fields(content) | dict(device=device)
    try:
        made_of = Config(**fields), content["input_shape"], content["num_classes"]
        with torch.device("meta"):  # shapes without memory: the file must fill them
            needed = stn.assemble(*made_of).state_dict()
    except Exception as error:  # from a config made to harm, anything
        raise CheckpointError(f"{path}: does not fit this version's models: {error}") from error
    _check_tensors(path, "model", content["model"], needed)
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
        # one number can pose as a million; non-finite ones would spoil the run without a word
        if (saved[name].untyped_storage().nbytes() != saved[name].nbytes
                or not saved[name].isfinite().all()):
            raise CheckpointError(f"{path}: {entry}/{name} has numbers that are not finite, or "
                                  "more or fewer of them than its shape says")
