"""Config: good values are kept as they are, bad ones are named together with what would be right."""

import dataclasses
import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_cifar import build_model, distortions, transforms
from stn_cifar.config import DISTORTIONS, PRESETS, TRANSFORMS, Config

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
few = settings(deadline=None, derandomize=True, max_examples=60)

# field, a bad value, and a piece of the remedy that the message has to name
BAD = [
    ("name", "../x", "letters, digits"), ("name", "", "letters, digits"),
    ("dataset", "cifar", "'cifar10'"), ("dataset", None, "str"),
    ("data_root", 3, "str"),
    ("transform", "afine", "'affine'"), ("transform", 6, "str"),
    ("distortion", "rotatoin", "'rotation'"), ("distortion", False, "str"),
    ("model", "resnet", "tutorial"),
    ("padding_mode", "wrap", "border"),
    ("interpolation", "nearest", "bilinear"),
    ("precision", "fp64", "fp32"),
    ("device", "gpu", "cuda"),
    ("stn", 1, "bool"), ("stn", "no", "bool"), ("stn", None, "bool"),
    ("epochs", 0, ">= 1"), ("epochs", -1, ">= 1"), ("epochs", 1.5, "int"), ("epochs", True, "int"),
    ("epochs", "5", "int"), ("epochs", None, "int"), ("epochs", math.nan, "int"),
    ("batch_size", 0, ">= 1"), ("batch_size", -64, ">= 1"), ("batch_size", 64.0, "int"),
    ("learning_rate", math.nan, "> 0"), ("learning_rate", math.inf, "> 0"), ("learning_rate", 0, "> 0"),
    ("learning_rate", -0.01, "> 0"), ("learning_rate", "0.01", "float"), ("learning_rate", True, "float"),
    ("localization_lr_scale", -0.1, ">= 0"), ("localization_lr_scale", math.inf, ">= 0"),
    ("momentum", 1.0, "<= 0.999"), ("momentum", -0.1, ">= 0"), ("momentum", math.nan, ">= 0"),
    ("weight_decay", -1e-4, ">= 0"),
    ("width", 0.05, ">= 0.1"), ("width", 8.5, "<= 8"), ("width", math.nan, ">= 0.1"), ("width", "2", "float"),
    ("schedule", "cosine", "linear"),
    ("warmup", -0.1, ">= 0"), ("warmup", 1.0, "<= 0.9"), ("warmup", math.nan, "<= 0.9"), ("warmup", True, "float"),
    ("label_smoothing", -0.1, ">= 0"), ("label_smoothing", 1.0, "<= 0.9"),
    ("flip", 1, "bool"), ("flip", None, "bool"), ("flip", "yes", "bool"),
    ("shift", -1, ">= 0"), ("shift", 1.5, "int"), ("shift", True, "int"),
    ("cutout", -1, ">= 0"), ("cutout", 8.0, "int"),
    ("val_size", -1, ">= 0"),
    ("iterations", 0, ">= 1"),
    ("supersample", 0, ">= 1"), ("supersample", 9, "<= 8"),
    ("channels", 2, "1, 3"),
    ("image_size", 0, ">= 1"), ("output_size", 0, ">= 1"), ("output_size", 32.0, "int"),
    ("num_classes", 1, ">= 2"),
    ("outside_weight", -1, ">= 0"), ("identity_weight", -1, ">= 0"), ("scale_weight", math.nan, ">= 0"),
    ("pose_weight", -1, ">= 0"), ("max_scale", 0.9, ">= 1"),
    ("seed", -1, ">= 0"), ("seed", 2**31, "<= 2147483647"), ("seed", 0.5, "int"),
]


@pytest.mark.parametrize(("field", "value", "remedy"), BAD)
def test_bad_value_is_named_with_its_field_and_remedy(field, value, remedy):
    with pytest.raises(ValueError) as error:
        Config(**{field: value})
    message = str(error.value)
    assert message.startswith(f"{field}: {value!r} ") and remedy in message.removeprefix(f"{field}: {value!r} ")
    if value is not None:  # preset() takes None for "as the preset has it"
        with pytest.raises(ValueError, match=f"^{field}: "):
            Config.preset("tutorial", **{field: value})
    with pytest.raises(ValueError, match=f"^{field}: "):
        Config().replace(**{field: value})


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", 1), ("batch_size", 1), ("learning_rate", 1), ("learning_rate", 1e-12), ("localization_lr_scale", 0),
    ("momentum", 0.999), ("val_size", 0), ("supersample", 8), ("seed", 2**31 - 1), ("max_scale", 1), ("stn", False),
    ("output_size", None), ("distortion", None), ("data_root", None), ("num_classes", 2), ("channels", 1),
    ("warmup", 0), ("warmup", 0.9), ("label_smoothing", 0.9), ("shift", 0), ("cutout", 0), ("flip", True)])
def test_values_at_the_limits_are_good(field, value):
    assert getattr(Config(**{field: value}), field) == value


def test_unknown_preset_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"^preset: 'tutorail' is unknown; did you mean 'tutorial'\?"):
        Config.preset("tutorail")
    with pytest.raises(ValueError, match=r"^preset: 'xyz' is unknown") as error:  # nothing is close: the whole list
        Config.preset("xyz")
    assert "did you mean" not in str(error.value) and all(name in str(error.value) for name in PRESETS)


def test_unknown_field_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"^epoch: no such field in Config; did you mean 'epochs'\?"):
        Config.preset("tutorial", epoch=3)
    with pytest.raises(ValueError, match=r"^qqq: no such field") as error:  # None does not hide a misspelling
        Config.preset("tutorial", qqq=None)
    assert "learning_rate" in str(error.value)  # what there is instead


def test_cuda_without_a_cuda_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device: 'cuda' .*use 'cpu' or 'auto'"):
        Config(device="cuda")
    assert Config(device="auto").torch_device() == Config(device="cpu").torch_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Config(device="cuda").torch_device().type == Config(device="auto").torch_device().type == "cuda"
    assert Config(device="cpu").torch_device().type == "cpu"


def test_what_cannot_iterate_says_so():
    with pytest.raises(ValueError, match=r"^iterations: .*'tps'.*affine"):
        Config(iterations=2, transform="tps")
    with pytest.raises(ValueError, match=r"^output_size: 20 .*32"):
        Config(iterations=2, output_size=20)
    Config(iterations=2, output_size=32), Config(iterations=1, transform="tps", output_size=20)
    Config(iterations=3, transform="projective")


def test_a_width_is_for_networks_that_have_one():
    with pytest.raises(ValueError, match=r"^width: 0\.5 with model='tutorial'.*must be 1 .*'compact'"):
        Config(width=0.5)
    with pytest.raises(ValueError, match=r"^width: 2\.0 with"):
        Config(model="compact", width=2).replace(model="tutorial")
    for model in ("compact", "strong", "light"):
        for width in (0.1, 1, 2.5, 8):
            assert Config(model=model, width=width).width == width


TAUGHT = dict(model="light", transform="rotation", pose_cells=36, pose_weight=1.0)


@pytest.mark.parametrize("fields, names, remedy", [
    (dict(quarter_turns="classifier"), "quarter_turns", "model='light'"),
    (dict(shared_layers=1, model="compact"), "shared_layers", "model='light'"),
    (dict(localization_width=2.0), "localization_width", "model='light'"),
    (TAUGHT | dict(shared_layers=1, quarter_turns="localization"), "shared_layers", "quarter_turns='none'"),
    (dict(model="light", quarter_turns="localization"), "quarter_turns", "pose_cells"),
    (TAUGHT | dict(quarter_turns="localization", transform="similarity"), "quarter_turns", "transform='rotation'"),
    (TAUGHT | dict(pose_cells=10), "pose_cells", "multiple of 4"),
    (TAUGHT | dict(pose_cells=4), "pose_cells", "from 12 on"),
    (TAUGHT | dict(pose_weight=0.0), "pose_cells", "set pose_weight"),
    (TAUGHT | dict(transform="affine"), "transform", "'rotation', 'similarity'"),
    (TAUGHT | dict(iterations=2), "iterations", "must be 1"),
    (TAUGHT | dict(stn=False, model="tutorial", pose_head=True), "pose_head", "model='light'"),
    (TAUGHT | dict(pose_head=True), "pose_head", "stn=False"),
    (dict(model="light", stn=False, pose_head=True), "pose_head", "pose_cells"),
    (dict(pose_curriculum=0.5), "pose_curriculum", "pose_cells"),
    (TAUGHT | dict(identity_weight=0.1), "identity_weight", "must be 0"),
    (TAUGHT | dict(shared_layers=1, width=2.0), "shared_layers", "localization_width=2.0"),
    (TAUGHT | dict(quarter_turns="localization", image_size=28), "image_size", "multiple of 8"),
    (dict(model="light", quarter_turns="classifier", image_size=28), "image_size", "multiple of 8"),
    (dict(model="light", quarter_turns="classifier", output_size=30), "output_size", "multiple of 8"),
    (TAUGHT | dict(quarter_turns="both", output_size=30), "output_size", "multiple of 8"),
    (TAUGHT | dict(quarter_turns="both", image_size=36, output_size=32), "image_size", "multiple of 8"),
])
def test_what_does_not_go_together_is_named_with_its_remedy(fields, names, remedy):
    with pytest.raises(ValueError, match=f"^{names}: .*{re.escape(remedy)}"):
        Config(**fields)
    assert Config(**TAUGHT, quarter_turns="localization") and Config(**TAUGHT, shared_layers=2)
    assert Config(model="light", quarter_turns="classifier", image_size=36, output_size=32)
    assert Config(**TAUGHT, quarter_turns="localization", stn=False, image_size=28)  # idle


@pytest.mark.parametrize("name", PRESETS)
def test_the_control_of_every_preset_is_one_field_away(name):
    config = Config.preset(name, stn=False)  # what concerns the transformer alone is idle then, not refused
    assert build_model(config).localization is None and build_model(config).pose_head is None


def test_the_tutorial_preset_is_the_original_experiment():
    config = Config.preset("tutorial")
    original = dict(name="tutorial", dataset="auto", model="tutorial", transform="affine", stn=True, iterations=1,
                    padding_mode="zeros", interpolation="bilinear", supersample=1, image_size=32, output_size=None,
                    epochs=50, batch_size=64, learning_rate=0.01, localization_lr_scale=1.0, momentum=0.0,
                    weight_decay=0.0, val_size=0, distortion=None, outside_weight=0.0, identity_weight=0.0,
                    scale_weight=0.0, pose_weight=0.0, seed=0, width=1.0, schedule="constant", warmup=0.0,
                    label_smoothing=0.0, flip=False, shift=0, cutout=0)
    assert {key: getattr(config, key) for key in original} == original
    assert Config().localization_lr_scale == 0.1  # everywhere else the localization network learns slower


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_knows_its_name(name):
    assert Config.preset(name).name == name
    assert Config.preset(name, seed=3) == Config.preset(name).replace(seed=3)


@pytest.mark.parametrize("name", ["compact", "strong"])
def test_the_presets_with_a_recipe_have_their_networks_behind_a_transformer(name):
    config = Config.preset(name)
    assert config.model == name and config.stn and config.epochs <= 50
    assert config.distortion is None and config.image_size == 32 and config.val_size == 0  # plain CIFAR-10, all of it


def test_overrides_win_over_the_preset_and_none_leaves_it_in_force():
    assert Config.preset("tutorial", localization_lr_scale=0.5).localization_lr_scale == 0.5
    assert Config.preset("tutorial", stn=False).stn is False  # false, but no None
    untouched = dict.fromkeys(set(FIELDS) - {"name"})
    assert Config.preset("tutorial", **untouched) == Config.preset("tutorial")
    assert Config().localization_lr_scale != Config.preset("tutorial").localization_lr_scale  # or that proved nothing


def test_config_cannot_be_changed_after_the_check():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 0
    assert config.replace(epochs=3).epochs == 3 and config.epochs == 50


def test_names_agree_with_the_tables_they_stand_for():
    # config lists them by hand, as everything may read config and config reads nothing
    assert tuple(distortions.DISTORTIONS) == DISTORTIONS
    assert tuple(transforms.FAMILIES) == TRANSFORMS


def test_every_knob_explains_itself():
    helps = [field.metadata["help"] for field in FIELDS.values()]
    assert all(len(text) > 5 for text in helps) and len(set(helps)) == len(helps)


def legal_values(field):
    """A strategy of values within the limits that the field itself states."""
    limits, kind = field.metadata, next(kind for kind in (bool, int, float, str) if kind.__name__ in str(field.type))
    if limits["choices"]:
        return st.sampled_from([choice for choice in limits["choices"] if choice != "cuda"])
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(limits["low"], limits["high"] or 2**40)
    if kind is float:
        low = limits["above"] if limits["low"] is None else limits["low"]
        return st.floats(low, limits["high"], allow_nan=False, allow_infinity=False,
                         exclude_min=limits["above"] is not None)
    if field.name == "name":  # goes into file names
        return st.from_regex(r"[\w-]+", fullmatch=True)
    return st.text(max_size=20)


# fields that are legal with certain others only
BOUND = ("iterations", "output_size", "localization_width", "quarter_turns", "shared_layers", "pose_cells",
         "pose_head", "pose_curriculum")


@few
@given(st.fixed_dictionaries({}, optional={name: legal_values(field) for name, field in FIELDS.items()
                                           if name not in BOUND}))
def test_any_legal_values_come_back_unchanged_even_through_json(values):
    if values.get("model", "tutorial") == "tutorial":
        values.pop("width", None)
    config = Config(**values)
    plain = config.to_dict()
    assert {key: plain[key] for key in values} == values
    assert list(plain) == list(FIELDS)
    assert Config(**json.loads(json.dumps(plain, allow_nan=False))) == config


@few
@given(st.data())
def test_any_number_beyond_a_limit_is_refused_by_name(data):
    name = data.draw(st.sampled_from([name for name, field in FIELDS.items()
                                      if field.metadata["low"] is not None or field.metadata["above"] is not None]))
    limits, is_float = FIELDS[name].metadata, "float" in str(FIELDS[name].type)
    low = limits["above"] if limits["low"] is None else limits["low"]
    below = (st.floats(max_value=low, exclude_max=limits["above"] is None, allow_nan=False) if is_float
             else st.integers(max_value=low - 1))
    if limits["high"] is not None:
        below |= (st.floats(min_value=limits["high"], exclude_min=True, allow_nan=False) if is_float
                  else st.integers(min_value=limits["high"] + 1))
    value = data.draw(below)
    with pytest.raises(ValueError, match=f"^{name}: "):
        Config(**{name: value})
