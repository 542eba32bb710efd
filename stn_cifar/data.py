"""Finds or fetches CIFAR-10, verifies every byte of it, and holds it on the device as uint8 tensors.

Nothing is trusted: files are read only if size and MD5 are those of the official release, the archive is
never unpacked to disk, and its pickles are read without importing or calling anything they name.
"""

import contextlib
import hashlib
import io
import os
import pickle
import secrets
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import distortions
from .config import Config
from .download import fetch_from_any
from .glyphs import CLASSES as GLYPH_CLASSES
from .glyphs import make_glyphs

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The official Python release (Krizhevsky 2009): size in bytes and MD5 of the archive and of what is in it.
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
IMAGES_PER_BATCH = 10_000

ENVIRONMENT_VARIABLE = "STN_CIFAR_DATA"
DEFAULT_PLACE = Path("data")  # in the working folder; downloads go here
PLACE_HOLDS = f"{FOLDER_NAME}/ or {ARCHIVE_NAME}"


class DataError(RuntimeError):
    """CIFAR-10 cannot be had as asked: a file is damaged, or a place that was named holds no data."""


class NoDataError(DataError):
    """CIFAR-10 was not found and not to be downloaded: the one case where "auto" goes on with glyphs."""


@dataclass(frozen=True, eq=False)  # eq would compare tensors, which have no single truth value
class Split:
    """Images and labels of one part of a data set, whole, as tensors on one device."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    poses: Tensor | None = None  # the theta each image was distorted by (glyphs: (N, 2, 3)), where it is known

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> "Split":
        """The images in `rows`, a slice, without copying."""
        return Split(self.images[rows], self.labels[rows], None if self.poses is None else self.poses[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`."""
        return Split(*(None if t is None else t.to(device) for t in (self.images, self.labels, self.poses)))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: what is trained on, what choices are made on (if any), what is measured once at the end."""

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    name: str  # "CIFAR-10" | "glyphs"


def load_data(config: Config) -> Data:
    """Loads the data set that `config.dataset` names onto `config.torch_device()`.

    Validation is the last `val_size` training images; ValueError if that leaves none to train on. The split,
    and the glyphs, are the same for every seed.

    CIFAR-10 is looked for in `config.data_root`, `$STN_CIFAR_DATA` and `./data`, else downloaded to `./data`.
    - A damaged file is a DataError that names it, with "cifar10" and "auto" alike: whoever has that file
      believes to have CIFAR-10, and should not get something else.
    - A data_root or $STN_CIFAR_DATA without CIFAR-10 is a DataError; "auto" says so and looks further.
    - Nothing found and no source reached is a NoDataError; "auto" shows a banner and goes on with the glyphs.
    """
    device = config.torch_device()  # first: a missing GPU should show before a long download
    train, test, classes, name = _load_splits(config)
    num_train = len(train) - config.val_size
    if not 0 < num_train <= len(train):
        raise ValueError(f"val_size: {config.val_size} is out of range; must be from 0 to {len(train) - 1}, "
                         f"as {name} has {len(train)} training images and one at least must be left")
    train, test = train.to(device), test.to(device)
    train, val = train[:num_train], train[num_train:] if config.val_size else None
    if config.distortion is not None:
        if test.poses is not None:
            raise ValueError(f"distortion: {config.distortion!r} on glyphs, which are in random poses already; "
                             "use dataset='cifar10', or config.replace(distortion=None, flip=False)")
        test, val = distorted(test, config), val and distorted(val, config)
    return Data(train, val, test, classes, name)


def distorted(split: Split, config: Config) -> Split:
    """The frozen suite of `split` under `config.distortion`; training images the trainer distorts anew each epoch."""
    size = distortions.DISTORTIONS[config.distortion].canvas_size(split.images.shape[-1])
    if size != config.image_size:
        raise ValueError(f"image_size: {config.image_size}, but the distortion {config.distortion!r} makes pictures of "
                         f"{size} pixels; set image_size={size}")
    images, theta = distortions.suite(split.images, config.distortion)
    return Split(images, split.labels, theta)


def _load_splits(config: Config) -> tuple[Split, Split, tuple[str, ...], str]:
    """(train, test, classes, name) on the CPU."""
    if config.dataset != "glyphs":
        try:
            return *_read_cifar10(_find(config) or _download(DEFAULT_PLACE)), CIFAR_CLASSES, "CIFAR-10"
        except NoDataError as error:
            if config.dataset != "auto":
                raise
            line = "=" * 100
            print(f'{line}\n!!! THIS IS NOT CIFAR-10: going on with the built-in data set "glyphs"\n{line}\n'
                  f"{error}\n{line}", flush=True)
    return Split(*make_glyphs(50_000, seed=0)), Split(*make_glyphs(10_000, seed=1)), GLYPH_CLASSES, "glyphs"


def _find(config: Config) -> Path | None:
    """The first folder of batches or archive in the search order, or None."""
    given = {"data_root": config.data_root, ENVIRONMENT_VARIABLE: os.environ.get(ENVIRONMENT_VARIABLE)}
    for name, value in given.items():
        if not value:
            continue
        place = Path(value).expanduser()
        if found := _look_in(place):
            return found
        problem = f"{name}: {value!r} (which is {place.absolute()}) does not hold {PLACE_HOLDS}"
        if config.dataset != "auto":
            raise DataError(f"{problem}; name a folder that does, or leave {name} unset to have CIFAR-10 "
                            f"looked for elsewhere and at last downloaded to ./{DEFAULT_PLACE}")
        print(f"NOTE: {problem}; looking further", flush=True)
    return _look_in(DEFAULT_PLACE)


def _look_in(place: Path) -> Path | None:
    """The folder of batches or the archive that `place` holds, or is; intact or not, reading it will show."""
    for folder in (place / FOLDER_NAME, place):
        if any(os.path.isfile(folder / name) for name in BATCHES):
            return folder
    archives = (place / ARCHIVE_NAME, place)
    return next((path for path in archives if path.name == ARCHIVE_NAME and os.path.isfile(path)), None)


def _read_cifar10(found: Path) -> tuple[Split, Split]:
    """Training and test split from a folder of batches or an archive; DataError if it is not as released."""
    if found.is_dir():
        batches = {name: _parse_batch(found / name, _read_verified(found / name, *BATCHES[name]))
                   for name in BATCHES}
    else:
        batches, content = {}, io.BytesIO(_read_verified(found, *ARCHIVE))
        with tarfile.open(fileobj=content, mode="r:gz") as tar:
            for member in tar:  # in the archive's order: gzip cannot seek back without starting over
                folder, _, name = member.name.rpartition("/")
                if folder == FOLDER_NAME and member.isreg() and BATCHES.get(name, (-1,))[0] == member.size:
                    batches[name] = _parse_batch(found / name, tar.extractfile(member).read())
    if missing := [name for name in BATCHES if name not in batches]:
        raise DataError(f"{found} does not hold {', '.join(missing)} in the size of the official release")
    *train, test = (batches[name] for name in BATCHES)
    images, labels = zip(*train, strict=True)
    return Split(torch.cat(images), torch.cat(labels)), Split(*test)


def _read_verified(path: Path, size: int, md5: str) -> bytes:
    """The content of `path`; DataError unless it has this size, seen before memory is taken, and this MD5."""
    try:
        problem = f"has {path.stat().st_size} bytes, not {size}"
        if path.stat().st_size == size:
            content = path.read_bytes()
            actual_md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if actual_md5 == md5:
                return content
            problem = f"has MD5 {actual_md5}, not {md5}"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise DataError(f"{path} {problem}: damaged, incomplete, or not the official CIFAR-10. It is not used. "
                    "Put the official file there, or take it away to have CIFAR-10 looked for elsewhere.")


class _RawArray:
    """Stands in for NumPy's arrays and dtypes in unpickling: keeps what it gets and does nothing."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state):
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists, dicts and arrays; imports nothing, and calls nothing but _RawArray."""

    allowed = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
                         "numpy.ndarray", "numpy.dtype"})

    def find_class(self, module, name):
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return _RawArray


def _parse_batch(path: Path, content: bytes) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, 3, 32, 32) and labels int64 (n,) of one pickled batch, n = IMAGES_PER_BATCH."""
    n = IMAGES_PER_BATCH
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        _, shape, dtype, fortran_order, pixels = batch[b"data"].state  # as numpy.ndarray.__reduce__ wrote it
        if shape != (n, 3072) or dtype.arguments[0] not in ("u1", b"u1") or fortran_order:
            raise ValueError(f"data must be uint8 ({n}, 3072), not {dtype.arguments} {shape}")
        if type(pixels) is not bytes or len(pixels) != n * 3072:
            raise ValueError(f"data must be {n * 3072} bytes")
        labels = torch.tensor(batch[b"labels"])
        if labels.shape != (n,) or labels.dtype != torch.int64 or labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"labels must be {n} integers from 0 to 9")
    except Exception as error:  # a hostile pickle may raise anything
        raise DataError(f"{path} is not a CIFAR-10 batch: {error}") from error
    # bytearray: tensors want writable memory. A row of data is the red, the green and the blue plane.
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(n, 3, 32, 32), labels


def _download(folder: Path) -> Path:
    """Downloads the archive into `folder`; returns its path, or raises NoDataError and leaves nothing behind.

    Several processes may do so at once: each writes a file of its own, and renames it once it is verified.
    """
    temporary = folder / f"{ARCHIVE_NAME}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            fetch_from_any(file, *ARCHIVE)
        return temporary.replace(folder / ARCHIVE_NAME)
    except OSError as error:
        raise NoDataError(f"""CIFAR-10 was not found and could not be downloaded to ./{folder}:
  {error}
Any one of these helps:
  1. place {ARCHIVE_NAME}, fetched elsewhere, or {FOLDER_NAME}/ in ./{folder}
  2. set the environment variable {ENVIRONMENT_VARIABLE} to a folder that holds {PLACE_HOLDS}
  3. use dataset="glyphs", the built-in data set, which needs no download""") from error
    finally:  # on Ctrl-C too
        with contextlib.suppress(OSError):
            temporary.unlink()
