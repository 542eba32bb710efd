"""One experiment and its record: all that a table may tell, whatever kind of run it was."""

import json
import math
import os
import re

import pytest
import torch
from torch import nn

from stn_cifar import Config, Data, Split, build_model, evaluate, experiment, fit
from stn_cifar.data.suites import suite
from stn_cifar.pose_bins import true_params
from stn_cifar.training.evaluation import (
    flip_shift_views,
    mirrored_views,
    rotated_views,
    top_k_poses,
    true_pose,
    where_unsure,
)


def config(**fields):
    return Config(**{"device": "cpu", "precision": "fp32", "epochs": 2, **fields})


@pytest.fixture(scope="module")
def small(glyph_data):
    test = glyph_data.test[:60]
    return Data(glyph_data.train[:100], None, test, glyph_data.classes, "glyphs")


@pytest.fixture(scope="module")
def run(small):
    """(model, data, record) of a run of two epochs."""
    return experiment.run(config(seed=5, flip=True), data=small)


KEYS = {"study", "arm", "seed", "config", "dataset", "parameters", "mflop", "finished",
        "epochs_done", "precision", "threads", "training_seconds", "test", "train", "statistics",
        "history", "machine", "versions", "date", "tta", "pose_recovery"}


def test_a_record_holds_all_of_a_run_as_plain_json(run):
    model, _, record = run
    assert set(record) >= KEYS and json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["study"] is None and record["arm"] is None and record["seed"] == 5
    assert Config(**record["config"]) == model.config == config(seed=5, flip=True)
    assert record["dataset"] == "glyphs" and record["parameters"] == 39_884
    assert record["finished"] is True and record["epochs_done"] == len(record["history"]) == 2
    assert record["training_seconds"] == sum(row["seconds"] for row in record["history"]) > 0
    assert record["precision"] == "fp32" and record["threads"] == torch.get_num_threads()
    assert {"python", "torch", "numpy", "matplotlib"} <= set(record["versions"])
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"[1-9]\d* CPU cores?, .+", record["machine"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])


def test_a_run_is_build_fit_and_measurement(run, small):
    model, data, record = run
    expected = build_model(config(seed=5, flip=True), small)
    fit(expected, small, expected.config)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert data is small and all(torch.equal(a, b) for a, b in pairs)
    for name, split in (("test", small.test), ("train", small.train)):
        measured = evaluate(model, split)
        assert record[name]["accuracy"] == measured.accuracy
        assert record[name]["loss"] == measured.loss and record[name]["images"] == len(split)
    assert record["test"]["confusion"] == evaluate(model, small.test).confusion.tolist()
    views = evaluate(model, small.test, predict=flip_shift_views).accuracy
    unsure = evaluate(model, small.test, predict=where_unsure(flip_shift_views)).accuracy
    mirrored = evaluate(model, small.test, predict=mirrored_views).accuracy
    assert record["tta"] == dict(mirrored=mirrored, flip_shift=views, flip_shift_unsure=unsure)
    assert record["mflop"] < record["mirrored_mflop"] < 2 * record["mflop"]  # it aligns once
    assert {"rotation", "scale", "outside", "sampling_scale"} <= set(record["statistics"])
    assert record["pose_recovery"]["within_30"] <= 1
    assert sum(record["pose_recovery"]["histogram"]) == 60


def test_a_run_that_was_stopped_is_not_called_finished(run, small):
    model, _, record = run
    for epochs, done in ((3, 2), (2, 1), (2, 0)):
        history = record["history"][:done]
        told = experiment.record(config(epochs=epochs), small, model, history)
        assert told["finished"] is False and told["epochs_done"] == done
        assert (told["precision"] is None) == (done == 0)


BINS = dict(model="light", transform="rotation", pose_bins=36, pose_weight=1.0)
ROTATED = dict(distortion="rotation")
POSES = {"top_2_poses", "top_4_poses", "true_pose"}


@pytest.mark.parametrize(("fields", "views"), [
    (dict(), set()), (dict(transform="tps"), set()),
    (dict(flip=True), {"mirrored", "flip_shift", "flip_shift_unsure"}),
    (dict(stn=False), set()), (dict(transform="projective", **ROTATED), set()),
    (dict(flip=True, **ROTATED), {"mirrored"}),  # shifted images are new to it
    (dict(transform="rotation", stn=False, **ROTATED), {"rotated_2", "rotated_4", "true_pose"}),
    (dict(transform="rotation", **ROTATED), {"true_pose"}), (BINS | ROTATED, POSES),
    (dict(BINS, transform="similarity", distortion="similarity"), POSES),
    (BINS | ROTATED | dict(model="p4", localization="p4_mod90"), {"true_pose"}),
    (dict(distortion="elastic"), set()), (dict(distortion="elastic", transform="rotation"), set()),
    (dict(distortion="elastic", transform="similarity", stn=False), set()),
    (dict(distortion="clutter", output_size=32), set())])
def test_every_kind_of_run_gets_a_record_with_the_views_that_apply(glyph_data, fields, views):
    this = config(**fields)
    plain = Split(glyph_data.test.images[:20], glyph_data.test.labels[:20])
    if this.distortion:
        images, theta = suite(plain.images, this.distortion)
        test = Split(images, plain.labels, theta)
    else:
        test = plain
    train = Split(glyph_data.train.images[:30], glyph_data.train.labels[:30])
    data = Data(train, None, test, glyph_data.classes)
    record = experiment.record(this, data, build_model(this, data), [])
    json.dumps(record, allow_nan=False)
    assert set(record["tta"]) == views and all(0 <= a <= 1 for a in record["tta"].values())
    spline = "tps" in fields.values() or "elastic" in fields.values()  # of which no pose is read
    assert ("pose_recovery" in record) == (test.poses is not None and not spline)
    assert record["train"]["images"] == (20 if this.distortion else 30)


def test_views_are_measured_as_evaluate_does(small):
    this = config(**BINS | dict(epochs=1))
    images, labels = small.test.images, small.test.labels
    images, theta = suite(images, "rotation")
    data = Data(Split(small.train.images, small.train.labels), None, Split(images, labels, theta),
                small.classes)
    model, data, record = experiment.run(this.replace(distortion="rotation"), data=data)
    predicts = dict(top_2_poses=top_k_poses(2), top_4_poses=top_k_poses(4), true_pose=true_pose)
    assert record["tta"] == {name: evaluate(model, data.test, predict=predict).accuracy
                             for name, predict in predicts.items()}
    with torch.no_grad():
        told = model(images, true_params(theta, "rotation")).argmax(1)
    assert record["tta"]["true_pose"] == (told == labels).sum().item() / 60
    control = build_model(this.replace(stn=False, distortion="rotation"), data)
    record = experiment.record(control.config, data, control, [])
    expected = evaluate(control, data.test, predict=rotated_views(4)).accuracy
    assert record["tta"]["rotated_4"] == expected


def test_taught_trains_on_images_in_known_poses_and_the_record_says_without_distortion(small):
    model, _, record = experiment.run(
        Config.preset("taught", device="cpu", epochs=1, localization_width=0.5), data=small)
    assert record["config"]["distortion"] is None and model.config.distortion is None
    assert record["config"]["pose_weight"] == 1 and record["finished"]
    assert set(record["tta"]) == POSES


def test_data_without_a_test_split_is_told_before_training(glyph_data):
    with pytest.raises(ValueError, match=r"^data: .*test"):
        experiment.run(config(), data=Data(glyph_data.train))


# ---- numbers that are not finite -----------------------------------------------------------------


def test_test_images_of_another_size_are_told_before_training(small):
    plain = Data(*(Split(split.images, split.labels) for split in (small.train, small.test)))
    data = Data(plain.train, test=plain.val)
    with pytest.raises(ValueError, match=r"^test: images of \(3, 32, 32\), but .* \(3, 48, 48\)"):
        experiment.run(config(distortion="translation"), data=data)


def run_off(model, value):
    """Let the localization network of `model` predict `value` for every parameter."""
    with torch.no_grad():
        model.transformer.localization.regressor[-1].bias.fill_(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e10, 1e30])
@pytest.mark.parametrize("transform", ["attention", "similarity", "affine", "projective", "tps"])
def test_a_transformer_that_has_run_off_leaves_a_record(small, value, transform):
    """Its statistics may be infinite or NaN: they are null, and the record is valid JSON."""
    model = build_model(config(transform=transform))
    run_off(model, value)
    record = experiment.record(model.config, small, model, [])
    told = json.loads(experiment.to_json(record))
    assert told["statistics"]["moved"]["mean"] is None or value == 1e10
    assert told["config"] == record["config"] and told["test"]["images"] == 60
    if transform != "tps":
        assert sum(told["pose_recovery"]["histogram"]) == 60
        if not math.isfinite(value):
            assert told["pose_recovery"]["histogram"][0] == 0


def test_a_run_whose_theta_overflows_is_trained_told_of_and_recorded(small, monkeypatch, capsys):
    """As with a learning rate of 1: at a scale of 1e26 squares overflow, and the loss does not."""
    def build(config, data):
        model = build_model(config, data)
        run_off(model, 60.0)
        return model

    monkeypatch.setattr(experiment, "build_model", build)
    this = config(transform="attention", momentum=0.9, localization_lr_scale=0.0)
    _, _, record = experiment.run(this, data=small)
    told = json.loads(experiment.to_json(record))
    assert told["finished"] and told["statistics"]["scale"] == dict(mean=None, std=None)
    assert told["statistics"]["sampling_scale"] == dict(mean=None, std=None)
    assert "the transformer after epoch 1: broken: theta is not" in capsys.readouterr().out


def test_json_has_null_for_what_is_not_finite_at_any_depth():
    deep = dict(c=-math.inf, d=(0.5, math.nan))
    record = dict(a=math.nan, b=[1, math.inf, deep], e="NaN", f=True)
    assert json.loads(experiment.to_json(record)) == dict(
        a=None, b=[1, None, dict(c=None, d=[0.5, None])], e="NaN", f=True)
    assert experiment.to_json(record).endswith("}\n")


# ---- what is told of model and machine -----------------------------------------------------------


def test_arithmetic_is_counted_as_by_hand(small):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 30 * 30, 10))
    model = build_model(config(stn=False), small)
    model.classifier = network
    grid = 2 * 3 * 32 * 32  # the identity's, which the control hands on
    multiply_adds = 5 * 30 * 30 * 3 * 3 * 3 + 5 * 30 * 30 * 10 + grid
    assert experiment.mflop(model) == pytest.approx(2 * multiply_adds / 1e6)
    assert experiment.mflop(build_model(config(), small)) > 2  # mode and gradients are restored
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_machine_is_named_by_cores_and_processor_or_card(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
        assert experiment.machine(torch.device("cpu")).startswith("1 CPU core, ")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on other systems
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert experiment.machine(torch.device("cpu")).startswith("8 CPU cores, ")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert experiment.machine(torch.device("cuda")) == "a card"


def test_a_digest_stands_for_a_text():
    texts = [f"learning_rate={rate}" for rate in range(200)]
    digests = {experiment.digest(text) for text in texts}
    assert len(digests) == 200 and {len(text) for text in digests} == {8}
    assert experiment.digest("a") == "ca978112"  # of SHA-256, so the same everywhere
