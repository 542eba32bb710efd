"""Every knob of an experiment in one frozen dataclass, checked when it is made; the presets as plain data."""

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field

import torch

TRANSFORMS = ("translation", "rotation", "attention", "similarity", "affine", "projective", "tps")
DISTORTIONS = ("rotation45", "rotation90", "rotation", "translation", "scale", "rts", "similarity", "affine",
               "projective", "elastic", "clutter")
MODELS = ("tutorial", "compact", "strong", "light")
TAUGHT = ("rotation", "similarity")  # the families that a distribution over poses can answer for


def _knob(default, help, *, low=None, high=None, above=None, choices=None):
    """A dataclass field that carries its own help text and its legal values (shown by --help, checked on creation)."""
    return field(default=default, metadata=dict(help=help, low=low, high=high, above=above, choices=choices))


@dataclass(frozen=True)
class Config:
    """One experiment. Make it with ``Config.preset("tutorial", epochs=50, seed=0)``.

    Unknown names and bad values raise ValueError naming the field, the value and what would be right.
    """

    name: str = _knob("tutorial", "the experiment's name in titles and file names: the preset it started from")
    # data
    dataset: str = _knob("auto", "which images; auto: CIFAR-10 where it can be had, else glyphs, and says so",
                         choices=("auto", "cifar10", "glyphs"))
    data_root: str | None = _knob(None, "folder holding CIFAR-10; None: $STN_CIFAR_DATA, ./data, then download")
    val_size: int = _knob(0, "training images held out for validation", low=0)
    distortion: str | None = _knob(None, "known distortion of every image, training and test; None: none",
                                     choices=DISTORTIONS)
    # model
    model: str = _knob("tutorial", "architecture of localization network and classifier", choices=MODELS)
    transform: str = _knob("affine", "transformer family", choices=TRANSFORMS)
    width: float = _knob(1.0, "channels of the classifier's layers, as a multiple (not the tutorial's)", low=0.1,
                         high=8)
    stn: bool = _knob(True, "False: the same classifier without the transformer (the control)")
    localization_width: float = _knob(1.0, "channels of the localization network's layers, as a multiple (light only)",
                                      low=0.1, high=8)
    quarter_turns: str = _knob("none", "which networks share their weights over turns by 90 degrees (light only)",
                               choices=("none", "localization", "classifier", "both"))
    shared_layers: int = _knob(0, "first layers of the classifier that the localization network has too (light only)",
                               low=0, high=3)
    iterations: int = _knob(1, "alignment steps, each resampling the original image (matrix families)", low=1)
    padding_mode: str = _knob("zeros", "what lies outside the picture; zeros: the mean colour, as pixels are "
                              "normalized before sampling", choices=("zeros", "border", "reflection"))
    interpolation: str = _knob("bilinear", "how the sampler interpolates", choices=("bilinear", "bicubic"))
    supersample: int = _knob(1, "anti-aliasing: samples per output pixel and axis", low=1, high=8)
    channels: int = _knob(3, "image channels", choices=(1, 3))
    image_size: int = _knob(32, "height and width of the input images, pixels", low=1)
    output_size: int | None = _knob(None, "height and width after the sampler, pixels; None: image_size", low=1)
    num_classes: int = _knob(10, "classes", low=2)
    # training
    epochs: int = _knob(50, "passes over the training images", low=1)
    batch_size: int = _knob(64, "images a step", low=1)
    learning_rate: float = _knob(0.01, "SGD learning rate of the classifier", above=0)
    localization_lr_scale: float = _knob(0.1, "learning rate of the localization network, as a multiple of "
                                         "learning_rate (paper, SVHN: 0.1; the tutorial: 1)", low=0)
    schedule: str = _knob("constant", "learning rate over the run; linear: down to zero at the last step",
                          choices=("constant", "linear"))
    warmup: float = _knob(0.0, "share of the run over which the learning rate rises from zero", low=0, high=0.9)
    momentum: float = _knob(0.0, "SGD momentum (Nesterov where above 0)", low=0, high=0.999)
    weight_decay: float = _knob(0.0, "L2 penalty on weights; not on biases and normalization", low=0)
    label_smoothing: float = _knob(0.0, "share of the target spread evenly over all classes", low=0, high=0.9)
    flip: bool = _knob(False, "mirror training images left to right, every second epoch")
    shift: int = _knob(0, "training images are shifted by up to so many pixels, mirrored at the edge", low=0)
    cutout: int = _knob(0, "side of a square cut out of each training image, pixels; 0: none", low=0)
    precision: str = _knob("auto", "arithmetic of the networks; auto: bf16 (fp16) where a measurement at start "
                           "finds it faster than fp32; coordinates are float32 always",
                           choices=("auto", "fp32", "bf16", "fp16"))
    cuda_graph: bool = _knob(False, "on CUDA, capture the training step as a graph and replay it; "
                             "not yet tried on a GPU")
    # guard rails: terms of the loss, each zero where the transformer behaves
    outside_weight: float = _knob(0.0, "weight of the penalty on sampling outside the picture", low=0)
    identity_weight: float = _knob(0.0, "weight of the penalty on distance from the identity", low=0)
    scale_weight: float = _knob(0.0, "weight of the penalty on a scale beyond max_scale or 1/max_scale", low=0)
    max_scale: float = _knob(1.5, "scale from which scale_weight sets in", low=1)
    pose_weight: float = _knob(0.0, "weight of the known pose's loss (needs a distortion or glyphs)", low=0)
    pose_cells: int = _knob(0, "cells of a distribution over each quantity of the pose, which the localization network "
                            "answers with and pose_weight teaches; 0: it answers with one pose", low=0, high=360)
    pose_span: str = _knob("circle", "what the cells of the turn span; quarter: 90 degrees, for a classifier to which the "
                           "quarter turns that are left are all the same", choices=("circle", "quarter"))
    pose_head: bool = _knob(False, "with stn=False: the control that learns the distribution over poses too, by a "
                            "second head of its classifier, and warps nothing (light only)")
    pose_curriculum: float = _knob(0.0, "share of the training images that the classifier is shown with their true "
                                   "pose undone, at the start; falls evenly to none at the end (with pose_cells)",
                                   low=0, high=1)
    # the run
    seed: int = _knob(0, "seed of initialisation, data order, dropout, augmentation and distortion", low=0,
                      high=2**31 - 1)
    device: str = _knob("auto", "where to train; auto: CUDA if there is one", choices=("auto", "cpu", "cuda"))

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            limits = {key: value for key, value in f.metadata.items() if key != "help"}
            _check(f.name, getattr(self, f.name), hints[f.name], **limits)
            if hints[f.name] is float:  # width=2 is the same experiment as width=2.0, under the same name
                object.__setattr__(self, f.name, float(getattr(self, f.name)))
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"name: {self.name!r} goes into file names; must be letters, digits, _ and - only")
        if self.iterations > 1 and self.transform == "tps":
            raise ValueError("iterations: must be 1 with transform='tps', whose maps do not compose; "
                             "matrix families (such as affine) can iterate")
        if self.iterations > 1 and self.output_size not in (None, self.image_size):
            raise ValueError(f"output_size: {self.output_size} with iterations={self.iterations}; iterating feeds the "
                             f"warped picture back in, so it must be image_size ({self.image_size}) or None")
        if self.width != 1 and self.model == "tutorial":
            raise ValueError(f"width: {self.width!r} with model='tutorial', whose layers are as they are; must "
                             "be 1 there, or the model 'compact', 'strong' or 'light'")
        self._check_light()
        self._check_taught()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: 'cuda' asked for, but torch sees no CUDA device; use 'cpu' or 'auto'")

    def _check_light(self):
        """The fields that only the light networks have."""
        for name, plain in (("localization_width", 1), ("quarter_turns", "none"), ("shared_layers", 0)):
            if getattr(self, name) != plain and self.model != "light":
                raise ValueError(f"{name}: {getattr(self, name)!r} with model={self.model!r}; only the model 'light' "
                                 f"has it, so it must be {plain!r}, or model='light'")
        shown = "image_size" if self.output_size is None else "output_size"  # to the classifier
        for name, turns in (("image_size", self.stn and self.localization_turns), (shown, self.classifier_turns)):
            if turns and getattr(self, name) % 8:
                raise ValueError(f"{name}: {getattr(self, name)} with quarter_turns={self.quarter_turns!r}; must be a "
                                 "multiple of 8, or poolings fall out otherwise on the turned picture")
        if not self.stn:  # what concerns the localization network alone is idle then
            return
        if self.shared_layers and self.localization_width != self.width:
            raise ValueError(f"shared_layers: {self.shared_layers} with localization_width={self.localization_width} "
                             f"and width={self.width}; the same layers have one width: set "
                             f"localization_width={self.width}")
        if self.shared_layers and self.quarter_turns != "none":
            raise ValueError(f"shared_layers: {self.shared_layers} with quarter_turns={self.quarter_turns!r}; the two "
                             "networks' layers are of different kinds then, so it must be 0, or quarter_turns='none'")
        if self.localization_turns and not (self.pose_cells and self.transform == "rotation"):
            raise ValueError(f"quarter_turns: {self.quarter_turns!r} lets the localization network answer with a "
                             f"distribution over turns, and needs pose_cells, such as 36 (now {self.pose_cells}), and "
                             f"transform='rotation' (now {self.transform!r}); set those, or quarter_turns='none'")

    def _check_taught(self):
        """What a distribution over poses needs."""
        if self.pose_head and (self.stn or not self.pose_cells or self.model != "light"):
            raise ValueError("pose_head: True is for the control without a transformer; it needs stn=False, "
                             "pose_cells, such as 36, and model='light', or must be False")
        if not (self.stn or self.pose_head):
            return
        if self.pose_curriculum and self.stn and not self.pose_cells:
            raise ValueError(f"pose_curriculum: {self.pose_curriculum} undoes what a taught transformer is to undo; it "
                             "needs pose_cells, such as 36, or must be 0")
        if self.pose_span == "quarter" and self.quarter_turns != "both":
            raise ValueError(f"pose_span: 'quarter' with quarter_turns={self.quarter_turns!r}; it leaves quarter turns, so "
                             "it needs quarter_turns='both', or must be 'circle'")
        if not self.pose_cells:
            return
        for name in ("outside_weight", "identity_weight", "scale_weight"):
            if getattr(self, name):
                raise ValueError(f"{name}: {getattr(self, name)} with pose_cells={self.pose_cells}, whose poses are "
                                 "read without gradients: it would teach nothing, so it must be 0")
        if self.pose_cells % 4 or self.pose_cells < 12:
            raise ValueError(f"pose_cells: {self.pose_cells}; must be 0, or a multiple of 4 from 12 on, such as 36")
        if not self.pose_weight:
            raise ValueError(f"pose_cells: {self.pose_cells} with pose_weight=0, by which nothing would teach them; "
                             "set pose_weight, such as 1, or pose_cells=0")
        if self.transform not in TAUGHT:
            raise ValueError(f"transform: {self.transform!r} with pose_cells={self.pose_cells}; must be one of "
                             f"{', '.join(map(repr, TAUGHT))}")
        if self.iterations > 1:
            raise ValueError(f"iterations: {self.iterations} with pose_cells={self.pose_cells}; must be 1")

    @classmethod
    def preset(cls, name, /, **overrides):
        """The preset `name` with `overrides`; an override of None leaves the preset's value in force."""
        if name not in PRESETS:
            raise ValueError(f"preset: {name!r} is unknown{_did_you_mean(name, PRESETS)}")
        _check_known(overrides)
        overrides = {key: value for key, value in overrides.items() if value is not None}
        return cls(**{"name": name, **PRESETS[name], **overrides})

    def replace(self, **changes):
        """A copy with some fields changed, checked like a new one."""
        _check_known(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self):
        """All fields as plain Python values, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def pose_kind(self):
        """The key of poses.AXES: what the distribution over poses is over."""
        return self.transform if self.pose_span == "circle" else f"{self.transform}, modulo 90 degrees"

    @property
    def localization_turns(self):
        """Does the localization network share its weights over quarter turns?"""
        return self.quarter_turns in ("localization", "both")

    @property
    def classifier_turns(self):
        """Does the classifier?"""
        return self.quarter_turns in ("classifier", "both")

    def torch_device(self):
        """The torch.device that `device` stands for on this machine."""
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")


def _check_known(names):
    known = [f.name for f in dataclasses.fields(Config)]
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: no such field in Config{_did_you_mean(name, known)}")


def _did_you_mean(name, known):
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return (f"; did you mean {close[0]!r}?" if close else ".") + f" Known: {', '.join(sorted(known))}"


def _check(name, value, hint, *, low, high, above, choices):
    """Raise ValueError naming field, value and remedy, unless `value` is of type `hint` and within its limits."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in allowed:
        return
    kind = allowed[0]
    # an int will do for a float; True is an int to Python but never to a person
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{name}: {value!r} is a {type(value).__name__}; must be {kind.__name__}")
    if choices and value not in choices:
        raise ValueError(f"{name}: {value!r} is unknown{_did_you_mean(value, map(str, choices))}")
    if kind in (int, float):
        limits = [f">= {low}" if low is not None else "", f"> {above}" if above is not None else "",
                  f"<= {high}" if high is not None else ""]
        good = (-math.inf < value < math.inf and (low is None or value >= low) and (above is None or value > above)
                and (high is None or value <= high))
        if not good:
            must = " and ".join(filter(None, limits)) or "finite"
            raise ValueError(f"{name}: {value!r} is out of range; must be {must}")


# What a preset does not name keeps Config's default.
PRESETS = {
    # The PyTorch STN tutorial carried to CIFAR-10, kernels, strides and recipe kept (40 thousand parameters).
    "tutorial": dict(model="tutorial", transform="affine", learning_rate=0.01, localization_lr_scale=1.0,
                     batch_size=64, epochs=50, val_size=0),
    # The same 50 epochs and fewer parameters, with what has been learnt since: residual, normalized, a schedule.
    # The localization network goes slowly, and is pulled to the identity a little: with momentum and a rate for
    # residual networks it otherwise runs off in the first epoch, and the classifier never catches up (see the ladder in
    # README).
    "compact": dict(model="compact", transform="affine", learning_rate=0.1, localization_lr_scale=0.01,
                    identity_weight=0.1, momentum=0.9, weight_decay=5e-4, schedule="linear", warmup=0.1, batch_size=128,
                    flip=True, shift=2, epochs=50),
    # After airbench96 (Jordan 2024, arXiv 2404.00498), behind a transformer: for a GPU.
    "strong": dict(model="strong", transform="affine", learning_rate=0.4, localization_lr_scale=0.0025,
                   identity_weight=0.1, momentum=0.9, weight_decay=5e-4, schedule="linear", warmup=0.1, batch_size=512,
                   label_smoothing=0.2, flip=True, shift=4, cutout=12, epochs=40),
    # The same networks where a transformer can be seen at work: without being told the pose it learns to put glyphs
    # upright. What did it: a plain, slow recipe (with momentum 0.9 the transformer ran off the picture in 10 epochs), a
    # schedule (without it one seed of two ended on a bad step, at 93 % instead of 99.9 %), and a little pull to the
    # identity (without it "upright" drifts: one seed turned all glyphs by a further 10 degrees).
    "glyphs": dict(dataset="glyphs", model="tutorial", transform="similarity", learning_rate=0.01, identity_weight=0.05,
                   localization_lr_scale=1.0, schedule="linear", batch_size=64, epochs=30, val_size=0),
    # CIFAR-10 turned by any angle, and a transformer that is told, in training, how each picture was turned. Small, for
    # many runs on few cores. What did it (README has the numbers): a distribution over turns instead of one answer;
    # weights shared over quarter turns; a classifier that is shown upright pictures first.
    "taught": dict(model="light", transform="rotation", distortion="rotation", pose_weight=1.0, pose_cells=36,
                   pose_curriculum=1.0, quarter_turns="localization", localization_width=2.0, learning_rate=0.1,
                   localization_lr_scale=1.0, momentum=0.9, weight_decay=5e-4, schedule="linear", warmup=0.15,
                   batch_size=128, flip=True, epochs=8),
}
