"""Every hyperparameter of an experiment in one frozen dataclass, checked when it is made."""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass

import torch

from .classifier import CLASSIFIERS
from .distortions import DISTORTIONS
from .fields import check_device, checked, did_you_mean, group
from .localization import LOCALIZATIONS
from .pose_bins import PoseBins
from .presets import PRESETS
from .sampler import PADDING_MODES
from .spatial_transformer import check_iterations
from .training.losses import LOSSES
from .training.optim import SCHEDULES
from .training.precision import DTYPES
from .transforms import FAMILIES

# what concerns the transformer alone: idle without one
TRANSFORMER_ONLY = ("localization", "localization_width", "localization_lr_scale", "pose_bins",
                    "iterations", "outside_weight", "identity_weight", "scale_weight", "max_scale",
                    "pose_weight", "teacher_forcing", "extra_losses")


_data, _transformer, _classifier = group("data"), group("transformer"), group("classifier")
_training, _losses, _run = group("training"), group("losses"), group("run")


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """One experiment. Make it with ``Config.preset("tutorial", epochs=50, seed=0)``.

    Bad values raise ValueError naming the field, the value and what would be right. ``Config()`` is
    the preset "tutorial".
    """

    name: str = _run("tutorial", "the experiment's name in titles: the preset it started from")

    dataset: str = _data("auto", "which images; auto: CIFAR-10 where it can be had, else glyphs",
                         choices=("auto", "cifar10", "glyphs"))
    data_root: str | None = _data(None, "CIFAR-10's folder; None: $STN_CIFAR_DATA, ./data, the net")
    val_size: int = _data(0, "training images held out for validation", low=0)
    distortion: str | None = _data(None, "known distortion of every image, training and test",
                                   choices=DISTORTIONS)

    stn: bool = _transformer(True, "False: the same classifier without it, the control")
    transform: str = _transformer("affine", "transformer family", choices=FAMILIES)
    localization: str | None = _transformer(None, "localization network; None: the model's",
                                            choices=LOCALIZATIONS)
    localization_width: float = _transformer(1.0, "channels of the localization network's layers, "
                                             "as a multiple (light and p4)", low=0.1, high=8)
    pose_bins: int = _transformer(0, "bins of a predicted distribution over each quantity of the "
                                  "pose, taught by pose_weight; 0: one pose is predicted",
                                  low=0, high=360)
    iterations: int = _transformer(1, "alignment steps, each resampling the original image", low=1)
    padding_mode: str = _transformer("zeros", "what lies outside the picture; zeros: mean colour",
                                     choices=PADDING_MODES)
    supersample: int = _transformer(1, "samples per output pixel and axis", low=1, high=8)
    output_size: int | None = _transformer(None, "height and width after the sampler, pixels; "
                                           "None: the image's", low=1)

    model: str = _classifier("tutorial", "classifier network", choices=CLASSIFIERS)
    width: float = _classifier(1.0, "channels of the classifier's layers, as a multiple (not the "
                               "tutorial's)", low=0.1, high=8)

    epochs: int = _training(50, "passes over the training images", low=1)
    batch_size: int = _training(64, "images a step", low=1)
    learning_rate: float = _training(0.01, "SGD learning rate of the classifier", above=0)
    localization_lr_scale: float = _training(1.0, "learning rate of the localization network, as a "
                                             "multiple (paper, SVHN: 0.1; the tutorial: 1)", low=0)
    schedule: str = _training("constant", "learning rate over the run", choices=SCHEDULES)
    warmup: float = _training(0.0, "share of the run over which the learning rate rises from zero",
                              low=0, high=0.9)
    momentum: float = _training(0.0, "SGD momentum (Nesterov where above 0)", low=0, high=0.999)
    weight_decay: float = _training(0.0, "L2 penalty on weights with more than one axis", low=0)
    label_smoothing: float = _training(0.0, "share of the target spread evenly over all classes",
                                       low=0, high=0.9)
    flip: bool = _training(False, "mirror training images left to right, every second epoch")
    shift: int = _training(0, "training images are shifted by up to so many pixels", low=0)
    cutout: int = _training(0, "side of a square cut out of each training image, pixels", low=0)
    precision: str = _training("auto", "precision of the networks; auto: bf16 or fp16 where the "
                               "hardware has it, else fp32; coordinates: float32 always",
                               choices=("auto", *DTYPES))

    outside_weight: float = _losses(0.0, "penalty on sampling outside the picture", low=0)
    identity_weight: float = _losses(0.0, "penalty on distance from the identity", low=0)
    scale_weight: float = _losses(0.0, "penalty on scales beyond max_scale or 1/max_scale", low=0)
    max_scale: float = _losses(1.5, "scale from which scale_weight sets in", low=1)
    pose_weight: float = _losses(0.0, "weight of the known pose's loss (a distortion, or glyphs)",
                                 low=0)
    teacher_forcing: float = _losses(0.0, "probability that the classifier is shown a training "
                                     "image with its true pose undone; annealed to 0 (pose_bins)",
                                     low=0, high=1)
    extra_losses: str = _losses("", "further rows of training.losses.LOSSES: 'name=0.1, other=1'")

    seed: int = _run(0, "seed of initialization, data order, dropout, augmentation and distortion",
                     low=0, high=2**31 - 1)
    device: str = _run("auto", "auto (CUDA if there is one), cpu, cuda, cuda:1 or mps (untested)")

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = checked(f.name, getattr(self, f.name), hints[f.name], **f.metadata["limits"])
            object.__setattr__(self, f.name, value)
        check_device(self.device)
        self.loss_weights()
        self._need(re.fullmatch(r"[\w-]+", self.name), "name",
                   "goes into file names; must be letters, digits, _ and - only")
        for name, table, key in (("width", CLASSIFIERS, self.model),
                                 ("localization_width", LOCALIZATIONS, self.localization_row)):
            able = ", ".join(repr(other) for other, row in table.items() if row.scalable)
            self._need(getattr(self, name) == 1 or table[key].scalable, name, f"with the network "
                       f"{key!r}, whose layers are as they are; must be 1 there, or another "
                       f"network: {able}")
        if self.stn:
            self._check_transformer()
        else:
            for name in TRANSFORMER_ONLY:
                self._need(getattr(self, name) == DEFAULTS[name], name, "with stn=False, without "
                           f"a transformer; must be {DEFAULTS[name]!r}")

    def _need(self, good, name, text):
        """ValueError of the field `name`, with its value and `text`, unless `good`."""
        if not good:
            raise ValueError(f"{name}: {getattr(self, name)!r} {text}")

    def _check_transformer(self):
        """What localization network, pose bins and losses need of each other."""
        row = LOCALIZATIONS[self.localization_row]
        self._need(not row.angle_span or (self.pose_bins and self.transform == "rotation"),
                   "localization", f"predicts bins of the angle; it needs pose_bins, such as 36 "
                   f"(now {self.pose_bins}), and transform='rotation' (now {self.transform!r}); "
                   "set those, or localization='light'")
        self._need(not row.needs_invariance or CLASSIFIERS[self.model].p4_invariant,
                   "localization", "leaves quarter turns, so the classifier must be invariant to "
                   f"them; set model='p4' (now {self.model!r}), or localization='p4'")
        check_iterations(self.iterations, self.transform, self.pose_bins)
        self._need(self.loss_weights()["scale"] or self.max_scale == DEFAULTS["max_scale"],
                   "max_scale", "with scale_weight=0, by which nothing is held to it; set "
                   f"scale_weight, such as 10, or it must be {DEFAULTS['max_scale']}")
        self._need(self.pose_bins or not self.teacher_forcing, "teacher_forcing",
                   "without pose_bins; set pose_bins, such as 36, or it must be 0")
        if not self.pose_bins:
            return
        PoseBins(self.transform, self.pose_bins)
        self._need(self.loss_weights()["pose"], "pose_bins", "with pose_weight=0, by which nothing "
                   "would teach them; set pose_weight, such as 1, or pose_bins=0")
        for name, weight in self.loss_weights().items():
            field = f"{name}_weight" if getattr(self, f"{name}_weight", 0) else "extra_losses"
            self._need(not weight or name not in ("outside", "identity", "scale"), field,
                       f"with pose_bins={self.pose_bins}, which are decoded without gradients: "
                       f"{name} would teach nothing, so it must be 0")

    @classmethod
    def preset(cls, name, /, **overrides):
        """The preset `name` with `overrides`.

        With stn=False, what concerns the transformer alone falls away unless it is named.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: {name!r} is unknown{did_you_mean(name, PRESETS)}")
        return cls(name=name, **PRESETS[name]).replace(**overrides)

    def replace(self, **changes):
        """A copy with some fields changed, checked like a new one; as `preset` does it."""
        for name in changes:
            if name not in DEFAULTS:
                raise ValueError(f"{name}: no such field in Config{did_you_mean(name, DEFAULTS)}")
        if "stn" in changes and not changes["stn"]:
            changes = {key: DEFAULTS[key] for key in TRANSFORMER_ONLY} | changes
        return dataclasses.replace(self, **changes)

    def loss_weights(self):
        """{name in training.losses.LOSSES: weight} of the terms that concern the transformer."""
        weights = {name: getattr(self, f"{name}_weight", 0.0) for name in LOSSES}
        for text in filter(str.strip, self.extra_losses.split(",")):
            name, _, number = (part.strip() for part in text.partition("="))
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if name not in LOSSES or not 0 <= weight < math.inf:
                raise ValueError(f"extra_losses: {text!r}; must be name=weight, the weight at "
                                 f"least 0 and the name one of {', '.join(map(repr, LOSSES))}")
            weights[name] += weight
        return weights

    @property
    def localization_row(self):
        """The key of localization.LOCALIZATIONS that is meant."""
        return self.localization or checked(f"CLASSIFIERS[{self.model!r}].localization",
                                            CLASSIFIERS[self.model].localization, str,
                                            choices=LOCALIZATIONS)

    def to_dict(self):
        """All fields as plain Python values, ready for JSON."""
        return dataclasses.asdict(self)

    def differences(self):
        """{field: value} of what differs from the preset."""
        preset = PRESETS.get(self.name, {})
        return {key: value for key, value in self.to_dict().items()
                if key != "name" and value != preset.get(key, DEFAULTS[key])}

    def __repr__(self):
        call = "Config.preset(" if self.name in PRESETS else "Config(name="
        fields = [f"{key}={value!r}" for key, value in self.differences().items()]
        return call + ", ".join([repr(self.name), *fields]) + ")"

    def torch_device(self):
        """The torch.device that `device` stands for on this machine."""
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(auto if self.device == "auto" else self.device)


DEFAULTS = {f.name: f.default for f in dataclasses.fields(Config)}  # the preset "tutorial"
Config.__doc__ = (Config.__doc__ or "") + "".join(  # help(Config) tells what --help does
    f"\n    {f.name}: {f.metadata['help']}"
    + (f" ({', '.join(choices)})" if (choices := f.metadata["limits"]["choices"]) else "")
    for f in dataclasses.fields(Config))


def check_config(config):
    """ValueError unless `config` is a Config."""
    if not isinstance(config, Config):
        raise ValueError(f"config: a {type(config).__name__}; must be a Config, such as "
                         "Config.preset('tutorial')")
