"""A record of a run: where it lies, what identifies it, reading and writing."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from stn_cifar import experiment
from stn_cifar.config import DEFAULTS
from stn_cifar.files import write_whole

try:
    import fcntl
except ImportError:  # Windows: two processes of one study there take a shard each
    fcntl = None

RESULTS = Path("results")
NO_EXPERIMENT = ("name", "data_root", "device", "seed")  # another value is not another experiment
# what tables cannot do without
NEEDED = {"study": str, "arm": str, "seed": int, "config": dict, "dataset": str, "parameters": int,
          "epochs_done": int, "precision": str, "machine": str, "test": dict, "history": list}


class RecordError(ValueError):
    """A record, or a folder of records, that cannot be used; the message names the file."""


def identity(config: dict, precision: str | None = None) -> frozenset:
    """What makes two runs the same experiment: the config's content, epochs included, seeds apart.

    precision: what "auto" came to. A field that a config lacks, as it is younger, has its default.
    """
    fields = DEFAULTS | config | dict(precision=precision or config["precision"])
    return frozenset(item for item in fields.items() if item[0] not in NO_EXPERIMENT)


def identity_of(record: dict) -> frozenset:
    """The identity of the experiment that left `record`."""
    return identity(record["config"], record["precision"])


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub("[^a-z0-9.]+", "-", text.lower().replace("'s", "s")).strip("-")


def place(results: Path, study: str, arm: str, config: dict, precision: str | None = None) -> Path:
    """Where the record of a run belongs: results/study/arm-8e-s0.json.

    Where the record of another experiment lies there, as one from before an arm was changed, the
    name gets a digest: no record takes another's place.
    """
    path = Path(results) / study / f"{slug(arm)}-{config['epochs']}e-s{config['seed']}.json"
    with contextlib.suppress(OSError, RecordError):
        if identity_of(read(path)) != (this := identity(config, precision)):
            digest = experiment.digest(repr(sorted(this, key=str)))
            return path.with_stem(f"{path.stem}-{digest}")
    return path


def read(path: Path) -> dict:
    """The record at `path`. RecordError where it holds none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise RecordError(f"{path}: is no record ({error})") from error
    record = record if isinstance(record, dict) else {}
    wrong = [key for key, kind in NEEDED.items() if not isinstance(record.get(key), kind)]
    if not wrong:
        config = record["config"]
        plain = all(isinstance(value, (str, int, float, type(None))) for value in config.values())
        good = dict(finished=record.get("finished", True),
                    test=isinstance(record["test"].get("accuracy"), float),
                    config=plain and {"epochs", "stn", "distortion"} <= set(config))
        wrong = [key for key, is_good in good.items() if not is_good]
    if wrong:
        raise RecordError(f"{path}: is no record of a finished run ({', '.join(wrong)})")
    return record


def write(record: dict, path: Path) -> Path:
    """Write `record` to `path`, whole or not at all; numbers that are not finite become null."""
    return write_whole(path, experiment.to_json(record))


def load(results: Path) -> dict[str, list[dict]]:
    """The records below `results`: study -> records, in the order of their file names.

    RecordError, naming the file, where one is malformed, where two are of the same run, or where
    there are none at all.
    """
    studies, runs = {}, {}
    for path in sorted(Path(results).glob("*/*.json")):
        if path.parent.name == "speed":  # the benchmarks'
            continue
        record = read(path)
        if record["study"] != path.parent.name:
            raise RecordError(f"{path}: belongs to study {record['study']!r}, not here")
        run = record["study"], identity_of(record), record["seed"]
        if run in runs:
            raise RecordError(f"{path}: is the same run as {runs[run]}; delete one of them")
        runs[run] = path
        studies.setdefault(record["study"], []).append(record)
    if not studies:
        raise RecordError(f"results: {str(results)!r} is missing or holds no records")
    return studies


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Does this process, and no other, make the record at `path`? As long as the block is open.

    The lock is the system's, on a file beside the record: that of a process which died is free.
    """
    if fcntl is None:
        yield True
        return
    lock = path.with_name(f".{path.stem}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a lock file that its owner has just deleted locks nothing
            ours = os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        try:
            yield ours
        finally:
            if ours:
                lock.unlink(missing_ok=True)
