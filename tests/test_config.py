"""Config: good values become plain ones, bad ones are named together with what would be right."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_cifar import Config, build_model
from stn_cifar.classifier import CLASSIFIERS
from stn_cifar.config import TRANSFORMER_ONLY
from stn_cifar.distortions import DISTORTIONS
from stn_cifar.localization import LOCALIZATIONS
from stn_cifar.presets import PRESETS
from stn_cifar.training.losses import LOSSES
from stn_cifar.training.optim import SCHEDULES
from stn_cifar.transforms import FAMILIES

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
LIMITS = {name: field.metadata["limits"] for name, field in FIELDS.items()}

# field, bad values, and a piece of the remedy that the message has to name
BAD = [
    ("name", ("../x", ""), "letters, digits"),
    ("dataset", ("cifar",), "'cifar10'"), ("dataset", (None,), "str"),
    ("data_root", (3,), "str or None"),
    ("transform", ("afine",), "'affine'"), ("transform", (6, None), "str"),
    ("distortion", ("rotatoin",), "'rotation'"), ("distortion", (False,), "str or None"),
    ("localization", ("lite",), "'light'"), ("model", ("resnet",), "tutorial"),
    ("padding_mode", ("wrap",), "border"), ("schedule", ("cosin",), "'cosine'"),
    ("precision", ("fp64",), "fp32"),
    ("device", ("gpu", "cuda:", "cuda:x", "", "cpu:0", "CPU"), "'cuda:1'"),
    ("stn", (1, "no", None, 0), "bool"), ("flip", (1, None, "yes"), "bool"),
    ("epochs", (0, -1), ">= 1"), ("epochs", (1.5, True, "5", None, math.nan), "int"),
    ("batch_size", (0, -64), ">= 1"), ("batch_size", (64.0,), "int"),
    ("learning_rate", (math.nan, math.inf, 0.0, -0.01), "> 0"),
    ("learning_rate", ("0.01", True, np.True_, 1j), "float"),
    ("localization_lr_scale", (-0.1, math.inf), ">= 0"),
    ("momentum", (1.0,), "<= 0.999"), ("momentum", (-0.1, math.nan), ">= 0"),
    ("weight_decay", (-1e-4,), ">= 0"),
    ("width", (0.05, math.nan), ">= 0.1"), ("width", (8.5,), "<= 8"), ("width", ("2",), "float"),
    ("localization_width", (0.0,), ">= 0.1"),
    ("warmup", (-0.1,), ">= 0"), ("warmup", (1.0, math.nan), "<= 0.9"),
    ("label_smoothing", (-0.1,), ">= 0"), ("label_smoothing", (1.0,), "<= 0.9"),
    ("shift", (-1,), ">= 0"), ("shift", (1.5, True), "int"), ("cutout", (-1,), ">= 0"),
    ("val_size", (-1,), ">= 0"), ("iterations", (0,), ">= 1"),
    ("pose_bins", (-12,), ">= 0"), ("pose_bins", (361,), "<= 360"),
    ("supersample", (0,), ">= 1"), ("supersample", (9,), "<= 8"),
    ("output_size", (0,), ">= 1"), ("output_size", (32.0,), "int or None"),
    ("outside_weight", (-1.0,), ">= 0"), ("scale_weight", (math.nan,), ">= 0"),
    ("pose_weight", (-1.0,), ">= 0"), ("max_scale", (0.9,), ">= 1"),
    ("teacher_forcing", (-0.1,), ">= 0"), ("teacher_forcing", (1.1,), "<= 1"),
    ("seed", (-1,), ">= 0"), ("seed", (2**31,), "<= 2147483647"), ("seed", (0.5,), "int"),
]


@pytest.mark.parametrize(("field", "values", "remedy"), BAD)
def test_bad_value_is_named_with_its_field_and_remedy(field, values, remedy):
    for value in values:
        for make in (Config, Config().replace, lambda **bad: Config.preset("tutorial", **bad)):
            with pytest.raises(ValueError) as error:
                make(**{field: value})
            start, _, rest = str(error.value).partition(f"{value!r} ")
            assert start == f"{field}: " and remedy in rest


def test_an_integer_beyond_all_floats_is_out_of_range():
    with pytest.raises(ValueError, match=r"^learning_rate: inf is out"):
        Config(learning_rate=10**400)


@pytest.mark.parametrize("text", ["ghost=1", "pose", "pose=", "pose=-1", "pose=nan", "pose=inf",
                                  "=1", "pose=1e999"])
def test_extra_losses_are_names_of_the_table_with_weights(text):
    with pytest.raises(ValueError, match=rf"^extra_losses: '{text}'.*'pose'"):
        Config(extra_losses=text)


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", 1), ("batch_size", 1), ("learning_rate", 1), ("learning_rate", 1e-12),
    ("localization_lr_scale", 0), ("momentum", 0.999), ("val_size", 0), ("supersample", 8),
    ("seed", 2**31 - 1), ("stn", False), ("output_size", None),
    ("distortion", None), ("data_root", None), ("localization", None), ("warmup", 0),
    ("warmup", 0.9), ("label_smoothing", 0.9), ("flip", True), ("schedule", "cosine")])
def test_values_at_the_limits_are_good(field, value):
    assert getattr(Config(**{field: value}), field) == value


@pytest.mark.parametrize(("field", "value", "plain"), [
    ("seed", np.int64(3), 3), ("epochs", np.uint8(7), 7), ("learning_rate", np.float32(0.5), 0.5),
    ("learning_rate", np.int32(1), 1.0), ("learning_rate", 1, 1.0), ("flip", np.True_, True),
    ("stn", np.False_, False), ("shift", np.int8(2), 2),
    ("data_root", Path("a", "b"), str(Path("a", "b"))),
    ("transform", np.str_("tps"), "tps")])
def test_numbers_of_numpy_and_paths_are_taken_and_kept_as_plain_values(field, value, plain):
    kept = getattr(Config(**{field: value}), field)
    assert kept == plain and type(kept) is type(plain)
    json.dumps(Config(**{field: value}).to_dict())


def test_a_control_may_be_asked_for_by_a_bool_of_numpy():
    assert Config.preset("compact", stn=np.False_) == Config.preset("compact", stn=False)


def test_unknown_presets_and_fields_get_a_suggestion():
    with pytest.raises(ValueError, match=r"^preset: 'tutorail' .*did you mean 'tutorial'\?"):
        Config.preset("tutorail")
    with pytest.raises(ValueError, match=r"^preset: 'xyz' is unknown\. Known: ") as error:
        Config.preset("xyz")  # nothing is close: the whole list
    assert all(name in str(error.value) for name in PRESETS)
    for make in (Config().replace, lambda **bad: Config.preset("tutorial", **bad)):
        with pytest.raises(ValueError, match=r"^learningrate: no such .*mean 'learning_rate'\?"):
            make(learningrate=1)
        with pytest.raises(ValueError, match=r"^qqq: no such field .*learning_rate"):
            make(qqq=1)


@pytest.mark.parametrize(("device", "count", "type_of"), [
    ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda"), ("cuda:2", 2, None), ("cuda", 0, None),
    ("auto", 1, "cuda"), ("auto", 0, "cpu"), ("cpu", 1, "cpu"), ("mps", 0, None)])
def test_a_device_must_be_there(monkeypatch, device, count, type_of):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if type_of is None:
        with pytest.raises(ValueError, match=f"^device: '{device}'"):
            Config(device=device)
    else:
        assert Config(device=device).torch_device().type == type_of


def test_apples_gpu_is_a_device_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Config(device="mps").torch_device() == torch.device("mps")


# ---- fields that need each other -----------------------------------------------------------------


BINS = dict(model="light", transform="rotation", pose_bins=36, pose_weight=1.0)
P4 = dict(BINS, localization="p4")


@pytest.mark.parametrize(("fields", "names", "remedy"), [
    (dict(width=0.5), "width", "must be 1 there, or another network: 'separable'"),
    (dict(localization_width=2.0), "localization_width", "'light'"),
    (dict(model="light", localization="compact", localization_width=2), "localization_width",
     "must be 1"),
    (dict(iterations=2, transform="tps"), "iterations", "'affine'"),
    (dict(BINS, iterations=2), "iterations", "must be 1"),
    (dict(model="light", localization="p4"), "localization", "pose_bins"),
    (dict(P4, transform="similarity"), "localization", "transform='rotation'"),
    (dict(P4, localization="p4_mod90"), "localization", "model='p4'"),
    (dict(BINS, pose_bins=10), "pose_bins", "multiple of 4"),
    (dict(BINS, pose_bins=8), "pose_bins", "from 12 on"),
    (dict(BINS, pose_weight=0.0), "pose_bins", "set pose_weight"),
    (dict(BINS, transform="affine"), "transform", "'rotation', 'similarity'"),
    (dict(BINS, identity_weight=0.1), "identity_weight", "must be 0"),
    (dict(teacher_forcing=0.5), "teacher_forcing", "set pose_bins"),
    *((dict(stn=False, **idle), name, "without a transformer") for name, idle in {
        "pose_weight": dict(pose_weight=1.0), "pose_bins": dict(pose_bins=36),
        "outside_weight": dict(outside_weight=0.5), "identity_weight": dict(identity_weight=1),
        "scale_weight": dict(scale_weight=1), "iterations": dict(iterations=2),
        "teacher_forcing": dict(teacher_forcing=0.5),
        "localization": dict(localization="light"), "extra_losses": dict(extra_losses="pose=1"),
        "localization_lr_scale": dict(localization_lr_scale=0.1),
        "max_scale": dict(max_scale=1.1),
        "localization_width": dict(model="light", localization_width=2.0)}.items()),
    (dict(max_scale=1.1), "max_scale", "set scale_weight"),
])
def test_what_does_not_go_together_is_named_with_its_remedy(fields, names, remedy):
    with pytest.raises(ValueError, match=f"^{names}: .*{re.escape(remedy)}"):
        Config(**fields)


@pytest.mark.parametrize("fields", [
    dict(max_scale=1, scale_weight=1), dict(max_scale=1.1, extra_losses="scale=1"),
    dict(iterations=3, transform="projective"), dict(iterations=2, output_size=20),
    dict(transform="tps", output_size=20), BINS, P4, dict(BINS, transform="similarity"),
    dict(P4, model="p4", localization="p4_mod90", pose_bins=12), dict(P4, teacher_forcing=1.0),
    dict(model="p4", stn=False), dict(model="strong", width=2.5), dict(model="p4", width=8),
    dict(model="separable", localization="light", localization_width=0.1)])
def test_what_goes_together_is_taken(fields):
    assert Config(**fields).to_dict() | fields == Config(**fields).to_dict()


def test_the_localization_network_that_goes_with_the_model_is_the_default():
    for name, row in CLASSIFIERS.items():
        assert Config(model=name).localization_row == row.localization
    assert Config(model="separable", localization="light").localization_row == "light"


# ---- presets, changes, repr ----------------------------------------------------------------------


def test_a_config_is_the_preset_tutorial_the_original_experiment():
    assert Config() == Config.preset("tutorial")
    original = dict(name="tutorial", dataset="auto", model="tutorial", transform="affine", stn=True,
                    localization_row="tutorial", iterations=1, padding_mode="zeros", supersample=1,
                    output_size=None, epochs=50, batch_size=64, learning_rate=0.01,
                    localization_lr_scale=1.0, momentum=0.0, weight_decay=0.0, val_size=0,
                    distortion=None, schedule="constant", warmup=0.0, label_smoothing=0.0,
                    flip=False, shift=0, cutout=0, seed=0)
    assert {key: getattr(Config(), key) for key in original} == original
    assert not any(Config().loss_weights().values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_its_control_is_one_field_away(name):
    config = Config.preset(name)
    assert config.name == name and config == Config.preset(name, seed=3).replace(seed=0)
    for control in (Config.preset(name, stn=False), config.replace(stn=False)):
        assert [key for key in TRANSFORMER_ONLY
                if getattr(control, key) != FIELDS[key].default] == []
        rest = set(FIELDS) - {"stn", *TRANSFORMER_ONLY}
        assert all(getattr(control, key) == getattr(config, key) for key in rest)
        assert not list(build_model(control).transformer.parameters())
    with pytest.raises(ValueError, match=r"^identity_weight: 0\.5 with stn=False"):
        Config.preset(name, stn=False, identity_weight=0.5)  # named, so not dropped unsaid


def test_overrides_win_and_none_is_none():
    assert Config.preset("compact", momentum=0.5).momentum == 0.5
    assert Config.preset("taught", distortion=None).distortion is None
    assert Config.preset("taught").replace(distortion=None).distortion is None
    assert Config.preset("taught") != Config()


def test_a_config_cannot_be_changed_after_the_check():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 0
    assert config.replace(epochs=3).epochs == 3 and config.epochs == 50
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert len({config, Config(), config.replace(seed=1)}) == 2  # a key of dicts


@pytest.mark.parametrize(("config", "text"), [
    (Config(), "Config.preset('tutorial')"),
    (Config.preset("taught", epochs=5, distortion=None),
     "Config.preset('taught', distortion=None, epochs=5)"),
    (Config(name="mine", flip=True), "Config(name='mine', flip=True)"),
    (Config.preset("compact", learning_rate=0.1), "Config.preset('compact')")])
def test_a_config_shows_what_differs_from_its_preset(config, text):
    assert repr(config) == text and eval(text, dict(Config=Config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_control_shows_makes_it_again(name):
    control = Config.preset(name, stn=False)
    assert eval(repr(control)) == control and "stn=False" in repr(control)


def test_the_fields_show_in_help_and_completion():
    assert list(inspect.signature(Config).parameters) == list(FIELDS)


def test_every_knob_explains_itself_in_a_group():
    helps = [field.metadata["help"] for field in FIELDS.values()]
    assert all(len(text) > 5 for text in helps) and len(set(helps)) == len(helps)
    groups = [field.metadata["group"] for field in FIELDS.values()]
    assert set(groups) == {"data", "transformer", "classifier", "training", "losses", "run"}
    starts = [group for group, before in zip(groups, ["", *groups], strict=False)
              if group != before]
    assert len(starts) <= 7  # fields of a group stand together


# ---- tables --------------------------------------------------------------------------------------


def test_choices_are_the_rooms_own_tables():
    tables = dict(transform=FAMILIES, distortion=DISTORTIONS, localization=LOCALIZATIONS,
                  model=CLASSIFIERS, schedule=SCHEDULES)
    assert all(LIMITS[name]["choices"] is table for name, table in tables.items())


@pytest.mark.parametrize(("field", "table"), [
    ("transform", FAMILIES), ("distortion", DISTORTIONS), ("localization", LOCALIZATIONS),
    ("model", CLASSIFIERS), ("schedule", SCHEDULES)])
def test_a_row_added_at_run_time_is_a_choice_at_once(monkeypatch, field, table):
    with pytest.raises(ValueError, match=f"^{field}: 'of_mine'"):
        Config(**{field: "of_mine"})
    row = table.get("tutorial", next(iter(table.values())))
    monkeypatch.setitem(table, "of_mine", row)
    assert getattr(Config(**{field: "of_mine"}), field) == "of_mine"


def test_loss_weights_are_those_of_the_fields_and_of_further_rows(monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", None)
    config = Config(outside_weight=0.5, extra_losses="mine=0.25, outside = 1,")
    assert config.loss_weights() == dict(outside=1.5, identity=0, scale=0, pose=0, mine=0.25)
    assert Config(extra_losses="mine=1e-3").loss_weights()["mine"] == 1e-3


# ---- laws ----------------------------------------------------------------------------------------


def legal_values(name):
    """A strategy of values within the limits that the field itself states."""
    limits, kind = LIMITS[name], next(kind for kind in (bool, int, float, str)
                                      if kind.__name__ in str(FIELDS[name].type))
    if name == "name":  # goes into file names
        return st.text("aZ09_-é", min_size=1, max_size=9)
    if name in ("device", "extra_losses"):
        return st.sampled_from(["auto", "cpu"] if name == "device" else ["", "pose=0.5"])
    if limits["choices"]:
        return st.sampled_from(list(limits["choices"]))
    if kind in (bool, str):
        return st.booleans() if kind is bool else st.text(max_size=20)
    if kind is int:
        return st.integers(limits["low"], limits["high"] or 2**40)
    low = limits["above"] if limits["low"] is None else limits["low"]
    return st.floats(low, limits["high"], allow_nan=False, allow_infinity=False,
                     exclude_min=limits["above"] is not None)


# fields that are legal with certain others only
BOUND = ("iterations", "width", "localization_width", "localization", "pose_bins",
         "teacher_forcing", "stn", "max_scale")


@settings(max_examples=40)
@given(st.fixed_dictionaries({}, optional={name: legal_values(name) for name in FIELDS
                                           if name not in BOUND}))
def test_any_legal_values_come_back_unchanged_through_json_and_repr(values):
    config = Config(**values)
    plain = config.to_dict()
    assert {key: plain[key] for key in values} == values and list(plain) == list(FIELDS)
    assert Config(**json.loads(json.dumps(plain, allow_nan=False))) == config == eval(repr(config))


@settings(max_examples=60)
@given(st.data())
def test_any_number_beyond_a_limit_is_refused_by_name(data):
    name = data.draw(st.sampled_from([name for name, limits in LIMITS.items()
                                      if limits["low"] is not None or limits["above"] is not None]))
    limits, is_float = LIMITS[name], "float" in str(FIELDS[name].type)
    low = limits["above"] if limits["low"] is None else limits["low"]
    beyond = (st.floats(max_value=low, exclude_max=limits["above"] is None, allow_nan=False)
              if is_float else st.integers(max_value=low - 1))
    if limits["high"] is not None:
        beyond |= (st.floats(min_value=limits["high"], exclude_min=True, allow_nan=False)
                   if is_float else st.integers(min_value=limits["high"] + 1))
    with pytest.raises(ValueError, match=f"^{name}: "):
        Config(**{name: data.draw(beyond)})


@pytest.mark.parametrize("name", ["outside", "identity", "scale"])
def test_a_loss_that_pose_bins_make_idle_is_refused_wherever_it_is_asked_for(name):
    fields = dict(transform="rotation", pose_bins=12, pose_weight=1.0)
    for more, field in ((dict(extra_losses=f"{name}=1"), "extra_losses"),
                        ({f"{name}_weight": 1.0}, f"{name}_weight")):
        with pytest.raises(ValueError, match=f"^{field}: .*{name} would teach nothing"):
            Config(**fields, **more)
    assert Config(transform="rotation", pose_bins=12, extra_losses="pose=1").pose_bins == 12
