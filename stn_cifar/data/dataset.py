"""A data set, whole, as uint8 tensors on one device; and the one that a Config names."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config, check_config
from ..console import say
from ..transforms import TPS_POINTS
from . import cifar10, glyphs
from .suites import suite

THETA = (2, 3), (3, 3), (TPS_POINTS**2, 2)  # shapes of the families' theta
NAMES = dict(cifar10="CIFAR-10", glyphs="glyphs")  # Config.dataset -> Data.name


def _check(good, found: str, must: str) -> None:
    if not good:
        raise ValueError(f"{found}; must be {must}")


@dataclass(frozen=True, eq=False)  # eq would compare tensors, which have no single truth value
class Split:
    """Images and labels of one part of a data set; ValueError names what is wrong with them.

    images: uint8 (N, C, H, H), at least one, not normalized, of any size and channel count.
    labels: int64 (N,), the index of each image's class.
    poses: the theta that each image was distorted by, where it is known, such as (N, 2, 3), of
        a family of transforms.FAMILIES; float32, or made so.
    """

    images: Tensor
    labels: Tensor
    poses: Tensor | None = None

    def __post_init__(self):
        for field in ("images", "labels") if self.poses is None else ("images", "labels", "poses"):
            value = getattr(self, field)
            _check(isinstance(value, Tensor), f"{field}: a {type(value).__name__}", "a Tensor")
            _check(value.ndim, f"{field}: a number", "one for each image")
            _check(len(value) == len(self.images), f"{field}: {len(value)}",
                   f"{len(self.images)}, one for each image")
            _check(value.device == self.images.device, f"{field}: on {value.device}",
                   f"on {self.images.device}, as the images are")
        shape = tuple(self.images.shape)
        _check(self.images.dtype == torch.uint8, f"images: {self.images.dtype}",
               "uint8 in 0..255, not normalized (the model does that): images.to(torch.uint8), or "
               "(255 * images).round().to(torch.uint8) of images in [0, 1]")
        _check(len(shape) == 4 and all(shape) and shape[2] == shape[3], f"images: shape {shape}",
               "(N, C, H, H), N and C at least 1: images.permute(0, 3, 1, 2) of (N, H, H, C), "
               "images.unsqueeze(1) of (N, H, H)")
        _check(self.labels.dtype == torch.int64, f"labels: {self.labels.dtype}",
               "int64, the index of each image's class: labels.long()")
        _check(self.labels.ndim == 1, f"labels: shape {tuple(self.labels.shape)}", "(N,)")
        if self.poses is not None:
            _check(self.poses.is_floating_point() and tuple(self.poses.shape[1:]) in THETA,
                   f"poses: {self.poses.dtype} {tuple(self.poses.shape)}",
                   f"floating point, (N, ...) of one of {', '.join(map(str, THETA))}")
            object.__setattr__(self, "poses", self.poses.float())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor) -> "Split":
        """Some of the images: of a slice, without copying, or of an index tensor."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change) -> "Split":
        poses = None if self.poses is None else change(self.poses)
        return Split(change(self.images), change(self.labels), poses)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: what is trained on, what choices are made on, what is measured once at the end.

    All images have one shape and one device; only where val and test are distorted, as `distorted`
    makes them, may they be larger than in train. classes: the labels' names; None: "0", "1", ...
    to the highest label. ValueError names what is wrong.
    """

    train: Split
    val: Split | None = None
    test: Split | None = None
    classes: tuple[str, ...] | None = None
    name: str = "data"

    def __post_init__(self):
        splits = dict(train=self.train, val=self.val, test=self.test)
        splits = {field: s for field, s in splits.items() if s is not None or field == "train"}
        for field, split in splits.items():
            _check(isinstance(split, Split), f"{field}: a {type(split).__name__}",
                   "a Split(images, labels)")
            found, trained = (tuple(s.images.shape[1:]) for s in (split, self.train))
            # training images are distorted as they are used, on a canvas that may be larger
            larger = split.poses is not None and not self.posed and found[0] == trained[0]
            _check(found == trained or larger, f"{field}: images of {found}",
                   f"{trained}, as in train")
            devices = split.images.device, self.train.images.device
            _check(devices[0] == devices[1], f"{field}: on {devices[0]}", f"on {devices[1]}")
            _check(split.poses is None or bool(split.poses.isfinite().all()),
                   f"{field}: poses with NaN or infinity", "finite")
        _check(isinstance(self.name, str), f"name: {self.name!r}", "text")
        ranges = {field: [int(v) for v in s.labels.aminmax()] for field, s in splits.items()}
        classes = self.classes
        if classes is None:
            classes = range(1 + max(high for _, high in ranges.values()))
        _check(isinstance(classes, Iterable) and not isinstance(classes, str),
               f"classes: {classes!r}", "names, such as ('cat', 'dog')")
        classes = tuple(map(str, classes))
        for field, (low, high) in ranges.items():
            _check(low >= 0 and high < len(classes), f"{field}: labels from {low} to {high}",
                   f"from 0 to {len(classes) - 1}, as there are {len(classes)} classes")
        object.__setattr__(self, "classes", classes)

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Pixels along each side of a training image, before it is distorted."""
        return self.train.images.shape[-1]

    @property
    def posed(self) -> bool:
        """Are the images in known poses of their own, so that no distortion must be added?"""
        return self.train.poses is not None


def load_data(config: Config) -> Data:
    """The data set that `config.dataset` names, on `config.torch_device()`, the same for all seeds.

    Validation is the last `val_size` training images; ValueError if that leaves none to train on.
    With a distortion, val and test are its frozen suites; glyphs, in random poses already, stay as
    they are. CIFAR-10 is looked for in `config.data_root`, `$STN_CIFAR_DATA` and `./data`, else
    downloaded to `./data`:
    - A file that is damaged or cannot be read is a DataError: whoever has it believes to have
      CIFAR-10, and should not get something else.
    - A data_root or $STN_CIFAR_DATA without CIFAR-10 is one too; "auto" says so and looks further.
    - Nothing found and no source reached is a NoDataError; "auto" shows a banner and takes glyphs.
    """
    check_config(config)
    device = config.torch_device()  # first: a missing GPU should show before a long download
    train, test, classes, name = _cifar10(config) or _glyphs(config)
    kept = len(train) - config.val_size
    _check(0 < kept <= len(train), f"val_size: {config.val_size} of {name}'s {len(train)} training "
           "images", f"from 0 to {len(train) - 1}, so that one at least is left")
    val = train[kept:].to(device) if config.val_size else None
    train, test = train[:kept].to(device), test.to(device)
    if config.distortion and train.poses is None:
        test, val = (split and distorted(split, config.distortion) for split in (test, val))
    return Data(train, val, test, classes, name)


def distorted(split: Split, distortion: str) -> Split:
    """The frozen suite of `split` under `distortion`, with its poses; ValueError if it has some."""
    _check(split.poses is None, "split: in known poses already", "without poses")
    images, theta = suite(split.images, distortion)
    return Split(images, split.labels, theta)


def _cifar10(config: Config):
    """(train, test, classes, name) on the CPU; None where it is to be glyphs."""
    if config.dataset == "glyphs":
        return None
    try:
        images, labels = cifar10.load(config.data_root, strict=config.dataset != "auto")
    except cifar10.NoDataError as error:
        if config.dataset != "auto":
            raise
        line = "=" * 100
        say(f"{line}\n!!! THIS IS NOT CIFAR-10: going on with the built-in data set \"glyphs\"\n"
            f"{line}\n{error}\n{line}")
        return None
    whole, num_test = Split(images, labels), len(images) // 6
    return whole[:-num_test], whole[-num_test:], cifar10.CLASSES, NAMES["cifar10"]


def _glyphs(config: Config):
    if config.distortion:
        say(f"!!! glyphs are in random poses already: distortion={config.distortion!r} is left out")
    train, test = (Split(*glyphs.make_glyphs(count, seed))
                   for seed, count in enumerate((50_000, 10_000)))
    return train, test, glyphs.CLASSES, NAMES["glyphs"]
