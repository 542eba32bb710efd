"""fit: numbers that equal a naive recomputation, runs that repeat to the bit, clean ends."""

import itertools
import json
import math
import signal
import threading
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stn_cifar import (
    Config,
    Data,
    SpatialTransformer,
    Split,
    STNClassifier,
    build_model,
    distortions,
    evaluate,
    fit,
    matrices,
    transforms,
)
from stn_cifar.data import augment, distorted
from stn_cifar.pose_bins import PoseBins
from stn_cifar.seeding import epoch_seed
from stn_cifar.spatial_transformer import IdentityTransformer
from stn_cifar.training.loop import NonFiniteLoss
from stn_cifar.training.losses import LOSSES
from stn_cifar.training.optim import SCHEDULES, make_optimizer, set_learning_rate
from stn_cifar.training.precision import CPU_HAS_BF16, resolve
from stn_cifar.training.step import Step

REPOSITORY = Path(__file__).parents[1]


def config(**fields):
    return Config(**{"device": "cpu", "precision": "fp32", "epochs": 1, **fields})


def trained(data, **fields):
    """A model after `fit`, and its history."""
    model = build_model(config(**fields), data)
    return model, fit(model, data, config(**fields))


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def flat(outputs):
    """A network that is one layer."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, outputs))


def training_part(data, count=None, poses=True):
    """`data` without validation; `count` training images, with or without their poses."""
    train, test = data.train[:count], data.test[:40]
    if not poses:
        train, test = (Split(split.images, split.labels) for split in (train, test))
    return Data(train, None, test, data.classes, data.name)


def shown_to(model):
    """A list that receives every batch of images that `model` is trained on."""
    batches, normalize = [], model.normalize

    def watched(images):
        if model.training:
            batches.append(images.clone())
        return normalize(images)

    model.normalize = watched
    return batches


def random_split(count, channels=3, size=32, classes=10):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8,
                           generator=generator)
    return Split(images, torch.arange(count) % classes)


@pytest.fixture
def numbered():
    """60 images, each with its own number in its first pixel."""
    split = random_split(60)
    split.images[:, 0, 0, 0] = torch.arange(60)
    return Data(split, None, split, name="numbered")


def orders(model, data, **fields):
    """The order, epoch by epoch, in which `fit` shows the numbered images."""
    batches = shown_to(model)
    fit(model, data, model.config.replace(**fields))
    numbers = torch.cat(batches)[:, 0, 0, 0].tolist()
    return [list(epoch) for epoch in zip(*[iter(numbers)] * 60, strict=True)]


# ---- learning ------------------------------------------------------------------------------------


# by class loss alone its transformer runs off with so few images
LIGHT = dict(model="light", stn=False)
BINS = dict(model="light", transform="rotation", pose_weight=1.0, pose_bins=36)


TUTORIAL = dict(learning_rate=0.1, epochs=20, batch_size=10)
OTHERS = dict(learning_rate=0.02, momentum=0.9, epochs=5, batch_size=15)
SLOWER = dict(OTHERS, localization_lr_scale=0.2)


@pytest.mark.parametrize("fields", [
    TUTORIAL, dict(TUTORIAL, stn=False), dict(TUTORIAL, transform="tps", momentum=0.5),
    OTHERS | LIGHT, *(SLOWER | fields for fields in (
        dict(model="separable"), dict(model="strong", width=0.1),
        dict(BINS, localization="p4"), dict(BINS, model="p4", localization="p4_mod90"),
        dict(BINS, transform="similarity", teacher_forcing=1.0)))])
def test_every_network_learns_down_to_its_last_parameter(glyph_data, fields):
    data, fields = training_part(glyph_data, 60), dict(fields, schedule="linear")
    start = build_model(config(**fields)).state_dict()
    model, history = trained(data, **fields)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.1
    if "model" not in fields:
        assert evaluate(model, data.train).accuracy > 0.2  # chance is 0.1
    still = [name for name, value in model.state_dict().items() if torch.equal(value, start[name])]
    assert still == []


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 3), (3, 64, 43), (2, 40, 2)])
def test_a_strangers_images_are_trained_on_and_evaluated(channels, size, classes):
    train, test = (random_split(count, channels, size, classes) for count in (90, 50))
    data = Data(train, test[:20], test, name="of a stranger")
    for fields in (dict(flip=True, shift=2, cutout=5), dict(distortion="rts", pose_weight=1.0)):
        model, (row,) = trained(data, **fields)
        assert math.isfinite(row["train_loss"]) and model.input_shape == (channels, size, size)
        metrics = evaluate(model, test)
        assert metrics.confusion.shape == (classes, classes) and metrics.confusion.sum() == 50


def test_a_strangers_model_without_a_config_is_trained_as_the_given_one_says(glyph_data):
    model = STNClassifier(SpatialTransformer(flat(6)), flat(10), (3, 32, 32), 10)
    data = training_part(glyph_data, 20)
    with pytest.raises(ValueError, match=r"^pose_weight: "):
        fit(model, data, config(pose_weight=1.0, flip=True))
    assert model.config is None  # what was refused leaves no trace
    for _ in range(2):  # a distortion, which is left out where images are posed, too
        assert len(fit(model, data, config(distortion="rotation"))) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", [dict(model="separable"), dict(model="strong", width=0.1)])
def test_one_image_left_over_is_a_batch_for_normalization_too(glyph_data, fields, precision):
    _, (row,) = trained(training_part(glyph_data, 41), batch_size=20, precision=precision,
                        shift=2, cutout=4, label_smoothing=0.1, **fields)
    assert math.isfinite(row["train_loss"])


@pytest.mark.parametrize(("model", "size"), [("light", 8), ("separable", 4), ("strong", 8)])
def test_one_image_left_over_joins_the_batch_before(model, size):
    """By itself its last maps would be one value for each channel: no variance to normalize by."""
    data = Data(random_split(41, size=size))
    _, (row,) = trained(data, model=model, width=0.2, batch_size=20)
    assert math.isfinite(row["train_loss"])


def test_lazy_layers_get_their_sizes_when_the_model_is_put_together(glyph_data):
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    model = STNClassifier(SpatialTransformer(flat(6)), lazy, (3, 32, 32), 10)
    assert model.training and model.classifier[1].in_features == 3072
    assert len(fit(model, training_part(glyph_data, 20), config())) == 1


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    return model


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_label_smoothing_spreads_a_share_of_the_target_over_all_classes(glyph_data, share):
    fields = dict(learning_rate=1e-12, label_smoothing=share)
    model, images = without_dropout(build_model(config(**fields))), glyph_data.train.images
    with torch.no_grad():  # predictions that differ, or any target would cost the same
        model.classifier.head[-1].weight.mul_(20)
        logits = model.eval()(images)
    labels = logits.argmax(1)  # it is right throughout, so that smoothing costs a lot
    split, logits = Split(images, labels), logits.double().numpy()
    data = Data(split, split, split, glyph_data.classes, "guesses")
    row, = fit(model, data, config(**fields))
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    hit, all_classes = logs[np.arange(203), labels.numpy()].mean(), logs.mean()
    expected = -(1 - share) * hit - share * all_classes
    assert row["train_loss"] == pytest.approx(expected, rel=1e-4) and hit > all_classes + 0.5
    assert row["val_loss"] == pytest.approx(-hit, rel=1e-4)  # measuring knows nothing of it


def test_a_row_of_history_tells_the_epoch_in_plain_numbers(glyph_data):
    measured = []

    def measure(model, history):
        val = evaluate(model, glyph_data.val)
        measured.append((val.loss, val.accuracy))

    model = build_model(config(epochs=2, learning_rate=0.02))
    history = fit(model, glyph_data, model.config, on_epoch_end=measure)
    keys = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate",
            "precision", "seconds"]
    assert [list(row) for row in history] == [keys, keys]
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(row["learning_rate"] == 0.02 and row["seconds"] > 0 for row in history)
    assert all(0 <= row["train_accuracy"] <= 1 and row["train_loss"] > 0 for row in history)
    assert [(row["val_loss"], row["val_accuracy"]) for row in history] == measured
    assert measured[0] != measured[1] and measured[1][0] != evaluate(model, glyph_data.test).loss
    assert json.loads(json.dumps(history)) == history
    _, (row,) = trained(training_part(glyph_data, 20))
    assert list(row) == [key for key in keys if not key.startswith("val")]


@pytest.mark.parametrize("batch_size", [64, 203, 202])
def test_training_metrics_count_every_image_once(glyph_data, batch_size):
    """Those of a ragged last batch too."""
    fields = dict(batch_size=batch_size, learning_rate=1e-12)  # the weights stand still
    model, images = without_dropout(build_model(config(**fields))), glyph_data.train.images
    with torch.no_grad():
        model.classifier.head[-1].weight.mul_(20)
        logits = torch.cat([model.eval()(image[None]) for image in images]).double()
    row, = fit(model, training_part(glyph_data), config(**fields))
    each = F.cross_entropy(logits, glyph_data.train.labels, reduction="none")
    assert row["train_loss"] == pytest.approx(each.mean().item(), rel=1e-4)
    assert row["train_accuracy"] == (logits.argmax(1) == glyph_data.train.labels).sum().item() / 203
    # a mean of the batches' means would be another number, which that tolerance can tell
    order = torch.randperm(203, generator=torch.Generator().manual_seed(epoch_seed(0, 1)))
    means = torch.stack([each[index].mean() for index in order.split(batch_size)]).mean().item()
    assert (means == pytest.approx(each.mean().item(), rel=1e-4)) == (batch_size == 203)


@pytest.mark.parametrize("fields", [dict(), dict(distortion="rts"), dict(distortion="projective",
                                                                         transform="projective")])
def test_training_loss_includes_the_terms_of_the_transformer(glyph_data, fields):
    data = training_part(glyph_data, poses=not fields)
    fields = dict(learning_rate=1e-12, seed=1) | fields
    losses = [trained(data, pose_weight=weight, **fields)[1][0]["train_loss"] for weight in (0, 2)]
    applied = glyph_data.train.poses
    if "distortion" in fields:
        generator = after_the_order(1, 1, 203)
        applied = distortions.sample_params(fields["distortion"], 203, generator).theta
    # the transformer still predicts the identity: what is left is the pose itself
    grid = transforms.FAMILIES["affine"].grid_of(torch.eye(2, 3)[None], 32)
    term = (matrices.apply(applied, grid) - grid).square().sum(-1).mean().item()
    assert term > 0.05 and losses[1] - losses[0] == pytest.approx(2 * term, rel=1e-3)


def test_teacher_forcing_is_annealed_to_0_and_shows_the_classifier_the_true_pose_undone(
        glyph_data, monkeypatch):
    asked, thetas, call = [], [], Step.__call__

    def watched(step, index, teacher_forcing):
        asked.append((index, teacher_forcing))
        return call(step, index, teacher_forcing)

    monkeypatch.setattr(Step, "__call__", watched)
    data, fields = training_part(glyph_data, 40), dict(BINS, epochs=2, batch_size=10)
    for probability in (1.0, 0.25, 0.0):
        model = build_model(config(teacher_forcing=probability, **fields))
        model.transformer.register_forward_hook(
            lambda module, args, output: thetas.append(output.theta) if module.training else None)
        fit(model, data, model.config)
    expected = [probability * (1 - k / 8) for probability in (1, 0.25, 0) for k in range(8)]
    assert [forced for _, forced in asked] == pytest.approx(expected)
    x, y = matrices.inverse(data.train.poses[asked[0][0]])[:, :, 0].T  # of a similarity
    angle = torch.atan2(y, x)
    undone = torch.stack([angle.cos(), -angle.sin(), 0 * x, angle.sin(), angle.cos(), 0 * x], 1)
    torch.testing.assert_close(thetas[0], undone.reshape(-1, 2, 3), atol=1e-5, rtol=0)
    assert (thetas[16] - thetas[0]).abs().max() > 0.1  # without, it is the prediction


def test_a_batch_larger_than_the_data_is_one_step_with_all_of_it(glyph_data):
    data = training_part(glyph_data, 50)
    large, exact, ragged = (trained(data, batch_size=size)[0] for size in (100_000, 50, 48))
    assert same_weights(large, exact) and not same_weights(large, ragged)


def test_progress_is_one_line_with_what_is_left_and_what_the_epoch_brought(glyph_data, capsys):
    trained(Data(glyph_data.train[:20], glyph_data.val, None, glyph_data.classes), epochs=2)
    out, err = capsys.readouterr()
    last = out.strip().rpartition("\r")[2]
    assert "100 %" in last and "<" in last and "epoch 2/2" in last and "val" in last
    assert "\n" not in last and err == ""


def test_a_fault_of_the_transformer_is_told_once(glyph_data, capsys):
    model = build_model(config(epochs=3, transform="translation", localization_lr_scale=0))
    with torch.no_grad():
        model.transformer.localization.regressor[-1].bias.copy_(torch.tensor([5.0, -5.0]))
    fit(model, training_part(glyph_data, 20), model.config)
    out = capsys.readouterr().out
    assert out.count("the transformer after epoch 1: off the picture") == 1
    assert out.count("off the picture") == 1 and "note:" not in out
    # nothing is wrong with a fresh one, and with none
    for fields in (dict(localization_lr_scale=0), dict(stn=False)):
        trained(training_part(glyph_data, 20), **fields)
        assert "the transformer after" not in capsys.readouterr().out


# ---- what is refused before the first step -------------------------------------------------------


@pytest.fixture
def no_step(monkeypatch):
    def fail(*_):
        raise AssertionError("a step was made")

    monkeypatch.setattr(Step, "__call__", fail)


@pytest.mark.parametrize("fields", [
    dict(transform="rotation"), dict(model="separable"), dict(iterations=2), dict(stn=False),
    dict(padding_mode="border"), dict(supersample=2, output_size=28),
    dict(transform="rotation", iterations=2, padding_mode="reflection", seed=3)])
def test_a_model_of_another_config_is_refused_naming_all_that_differs(glyph_data, no_step, fields):
    for built, asked in ((dict(), fields), (fields, dict())):
        with pytest.raises(ValueError, match=r"build_model\(config\)") as error:
            fit(build_model(config(**built)), glyph_data, config(**asked))
        text = str(error.value)
        for name in fields:
            now, before = asked.get(name, getattr(Config(), name)), built.get(name)
            assert f"{name}: {now!r}, but the model was built with" in text
            assert before is None or f"built with {before!r}" in text
        assert text.count("the model was built with") == len(fields)


@pytest.mark.parametrize(("make", "differs"), [
    (lambda: SpatialTransformer(flat(1), "rotation"), "transform: 'affine', .* with 'rotation'"),
    (lambda: SpatialTransformer(flat(6), padding_mode="border"), "padding_mode: 'zeros'"),
    (lambda: SpatialTransformer(flat(6), iterations=2), "iterations: 1, .* with 2"),
    (lambda: IdentityTransformer(), "stn: True, .* with False"),
    (lambda: SpatialTransformer(flat(36), "rotation", pose_bins=PoseBins("rotation", 36)),
     "pose_bins: 0, .* with 36")])
def test_a_transformer_put_in_by_hand_must_be_the_configs_too(glyph_data, no_step, make, differs):
    model = STNClassifier(make(), flat(10), (3, 32, 32), 10)
    with pytest.raises(ValueError, match=differs):
        fit(model, glyph_data, config())
    assert model.config is None


def test_a_model_put_together_by_hand_is_trained_by_the_config_that_fits(glyph_data):
    model = STNClassifier(SpatialTransformer(flat(1), "rotation"), flat(10), (3, 32, 32), 10)
    assert len(fit(model, training_part(glyph_data, 20), config(transform="rotation"))) == 1


def test_a_network_that_is_no_stnclassifier_is_refused_in_words(glyph_data, no_step):
    for call in (lambda: fit(flat(10), glyph_data, config()),
                 lambda: evaluate(flat(10), glyph_data.test)):
        with pytest.raises(ValueError, match=r"^model: a Sequential; must be an STNClassifier"):
            call()
    with pytest.raises(ValueError, match=r"^config: a dict; must be a Config"):
        fit(build_model(config()), glyph_data, dict(epochs=1))
    with pytest.raises(ValueError, match=r"^model: its transformer is a Identity; must be a Spat"):
        fit(STNClassifier(nn.Identity(), flat(10), (3, 32, 32), 10), glyph_data, config())
    three = STNClassifier(IdentityTransformer(), flat(3), (3, 32, 32), 10)
    with pytest.raises(ValueError, match=r"^classifier: it gives logits \(2, 3\); .*\(B, 10\)"):
        three(torch.rand(2, 3, 32, 32))


def test_a_model_in_which_nothing_can_be_trained_is_refused(glyph_data, no_step):
    frozen = build_model(config()).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^model: none of its parameters requires a gradient"):
        fit(frozen, glyph_data, config())
    trunk = flat(6)
    shared = STNClassifier(SpatialTransformer(trunk), nn.Sequential(trunk, nn.Linear(6, 10)),
                           (3, 32, 32), 10)
    with pytest.raises(ValueError, match=r"^model: transformer and classifier share parameters"):
        fit(shared, glyph_data, config())


def test_poses_that_are_no_matrix_cannot_be_what_is_learnt(no_step):
    split = random_split(20)
    bent = Data(Split(split.images, split.labels, torch.zeros(20, 16, 2)), classes=range(10))
    with pytest.raises(ValueError, match=r"^pose_weight: 1.0 needs a pose that is known and a mat"):
        fit(build_model(config(pose_weight=1.0)), bent, config(pose_weight=1.0))


@pytest.mark.parametrize("splits", [["val"], ["test"], ["val", "test"], []])
def test_it_says_where_test_images_are_not_distorted_as_training_images_are(
        glyph_data, capsys, splits):
    plain = training_part(glyph_data, 20, poses=False)
    held_out = {name: plain.train if name in splits else distorted(plain.train, "rotation")
                for name in ("val", "test")}
    trained(Data(plain.train, classes=plain.classes, **held_out), distortion="rotation")
    out = capsys.readouterr().out
    assert ("NOTE: training images are distorted (rotation), " in out) == bool(splits)
    assert f"{' and '.join(splits)} are not" in out or not splits


def test_what_concerns_no_weight_may_differ(glyph_data):
    model = build_model(config())
    history = fit(model, training_part(glyph_data, 20),
                  config(name="renamed", data_root="/elsewhere", epochs=2, device="auto"))
    assert len(history) == 2


@pytest.mark.parametrize(("channels", "size", "classes", "message"), [
    (3, 32, 9, "tells 9 classes apart, but glyphs has 10"),
    (3, 32, 11, "tells 11 classes apart, but glyphs has 10"),
    (3, 36, 10, r"\(3, 36, 36\), but glyphs has \(3, 32, 32\)"),
    (1, 32, 10, r"\(1, 32, 32\), but glyphs has \(3, 32, 32\)")])
def test_a_model_for_other_images_is_refused(glyph_data, no_step, channels, size, classes, message):
    for_other = build_model(config(), Data(random_split(classes, channels, size, classes)))
    with pytest.raises(ValueError, match=rf"^model: .*{message}.*build_model\(config, data\)"):
        fit(for_other, glyph_data, config())


@pytest.mark.parametrize("fields", [dict(pose_weight=1.0), dict(extra_losses="pose=1.0")])
@pytest.mark.parametrize("distortion", [None, "elastic"])
def test_a_pose_loss_without_a_known_matrix_is_refused(glyph_data, no_step, fields, distortion):
    with pytest.raises(ValueError, match=r"^pose_weight: 1\.0 needs a pose .*'glyphs'"):
        trained(training_part(glyph_data, poses=False), distortion=distortion, **fields)


@pytest.mark.parametrize("fields", [dict(flip=True), dict(shift=1)])
def test_a_pose_that_augmentation_would_make_wrong_is_refused(glyph_data, fields):
    with pytest.raises(ValueError, match=r"^pose_weight: 0\.5 with flip=.* and shift=.*weight=0"):
        trained(training_part(glyph_data), pose_weight=0.5, **fields)
    # a hole leaves the pose as it is, and a distortion has one of its own
    trained(training_part(glyph_data, 10), pose_weight=0.5, cutout=4)
    trained(training_part(glyph_data, 10, poses=False), pose_weight=0.5, distortion="rotation",
            **fields)


def test_images_too_small_for_a_shift_are_told_in_words(numbered):
    with pytest.raises(ValueError, match=r"^shift: 32 pixels, in images of 32; must be <= 31"):
        trained(numbered, shift=32)


def test_the_preset_taught_trains_on_images_that_are_posed_already_and_says_so(glyph_data, capsys):
    taught = Config.preset("taught", device="cpu", epochs=2, batch_size=32)
    data = training_part(glyph_data, 60)
    model = build_model(taught, data)
    batches = shown_to(model)
    history = fit(model, data, taught)
    assert len(history) == 2 and "glyphs: its images are in known poses" in capsys.readouterr().out
    shown = torch.cat(batches)[:60]  # neither distorted nor mirrored
    order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch_seed(0, 1)))
    assert torch.equal(shown, data.train.images[order])


# ---- repeating -----------------------------------------------------------------------------------


def test_a_seed_fixes_a_default_run_to_the_bit(glyph_data):
    """Whatever the global random state; the precision is a rule, and no stop-watch."""
    data, runs = training_part(glyph_data, 60), []
    for world, seed in ((1, 3), (2, 3), (1, 4)):
        torch.manual_seed(world)
        runs.append(trained(data, epochs=2, seed=seed, precision="auto", batch_size=20))
    (first, history), (again, repeated), (other, _) = runs
    assert same_weights(first, again) and not same_weights(first, other)
    assert [dict(row, seconds=0) for row in history] == [dict(row, seconds=0) for row in repeated]


def test_the_seed_of_training_alone_makes_another_run(glyph_data):
    data, models = training_part(glyph_data, 60), [build_model(config()) for _ in range(2)]
    models[1].config = config(seed=1)
    for model in models:
        fit(model, data, model.config)
    assert not same_weights(*models)


def test_data_order_depends_on_seed_and_epoch_alone(numbered):
    first = orders(build_model(config(batch_size=16, seed=1)), numbered, epochs=3)
    assert all(sorted(epoch) == list(range(60)) for epoch in first)  # each image once an epoch
    assert first[0] != first[1] != first[2] != first[0] and first[0] != list(range(60))
    torch.manual_seed(5)  # another world, family, batch, rate and number of epochs
    other = config(transform="rotation", batch_size=33, learning_rate=0.1, seed=1)
    assert orders(build_model(other), numbered, epochs=2) == first[:2]
    assert orders(build_model(config(seed=2)), numbered)[0] not in first


def test_epochs_of_all_seeds_sample_from_seeds_of_their_own():
    pairs = list(itertools.product((0, 1, 2, 1000, 2**31 - 1), (1, 2, 50, 99_999)))
    seeds = {epoch_seed(*pair) for pair in pairs}
    assert len(seeds) == len(pairs) and max(seeds) < 2**63  # what a torch.Generator takes


def test_two_fits_in_two_threads_give_the_weights_of_a_fit_alone(glyph_data):
    """Dropout and initialization sample from torch's one global generator."""
    data = training_part(glyph_data, 60)
    fields = [dict(seed=seed, epochs=3, batch_size=10) for seed in (1, 2)]
    alone, together = [trained(data, **some)[0] for some in fields], [None, None]
    barrier = threading.Barrier(2)

    def run(i):
        barrier.wait()
        together[i] = trained(data, **fields[i])[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(same_weights, alone, together)) and not same_weights(*alone)


# ---- the process around it -----------------------------------------------------------------------


def denormals_are_flushed():
    return (torch.full((1,), 1e-38) * 0.01).item() == 0


def process_state():
    return dict(random=torch.random.get_rng_state().tolist(), dtype=torch.get_default_dtype(),
                grad=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(),
                autocast=torch.is_autocast_enabled("cpu"), threads=torch.get_num_threads(),
                flushed=denormals_are_flushed(), numpy=np.random.get_state()[1].tolist(),
                signals=[signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
                plots=dict(matplotlib.rcParams), backend=matplotlib.get_backend())


@pytest.fixture(params=[True, False])
def flush(request):
    torch.set_flush_denormal(request.param)
    yield request.param
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("end", ["well", "error", "stop"])
def test_the_process_is_left_as_it_was_found(glyph_data, flush, end):
    class Mine(RuntimeError):
        pass

    def in_callback(model, history):
        if end != "well":
            raise Mine if end == "error" else KeyboardInterrupt

    torch.manual_seed(11)
    before, model = process_state(), build_model(config(distortion="rotation", flip=True))
    assert process_state() == before
    try:
        fit(model, training_part(glyph_data, 20, poses=False), model.config,
            on_epoch_end=in_callback)
    except Mine:
        assert end == "error"
    assert process_state() == before and before["flushed"] == flush and not model.training
    model.normalize = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):  # also where it breaks off in the midst of an epoch
        fit(model, training_part(glyph_data, 20, poses=False), model.config)
    assert process_state() == before


def test_vanishing_activations_are_flushed_while_training(glyph_data):
    flushed = []
    fit(build_model(config()), training_part(glyph_data, 10), config(),
        on_epoch_end=lambda *_: flushed.append(denormals_are_flushed()))
    assert flushed == [True] and not denormals_are_flushed()


AROUND = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
          "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
          "autocast off": lambda: torch.autocast("cpu", enabled=False)}


@pytest.mark.parametrize("fields", [dict(precision="fp32"), dict(precision="bf16"),
                                    dict(BINS, batch_size=20, teacher_forcing=0.5)])
@pytest.mark.parametrize("around", AROUND)
def test_fit_within_another_context_gives_the_weights_of_without(glyph_data, around, fields):
    """Bit for bit: an outer autocast kept the casts of weights that had changed since."""
    data, runs = training_part(glyph_data, 40), []
    for context in (torch.enable_grad, AROUND[around]):
        model = build_model(config(**dict(epochs=2, batch_size=10) | fields))
        with context():
            before = process_state()
            history = fit(model, data, model.config)
            assert process_state() == before
        runs.append((model, [dict(row, seconds=0) for row in history]))
    assert same_weights(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert all(p.dtype == torch.float32 for p in runs[1][0].parameters())


@pytest.mark.parametrize("around", ["no_grad", "autocast"])
def test_every_step_computes_with_the_weights_of_the_step_before(glyph_data, around):
    """Not with casts of older ones, which torch keeps as long as any autocast context is open."""
    model, errors = build_model(config(precision="bf16", batch_size=10, learning_rate=1.0)), []

    def compare(layer, args, output):
        if model.training:
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                now = F.linear(args[0].float(), layer.weight, layer.bias)
            errors.append((output.float() - now).abs().max().item())

    model.classifier.head[-1].register_forward_hook(compare)
    with AROUND[around]():
        fit(model, training_part(glyph_data, 40), model.config)
    assert len(errors) == 4 and max(errors) < 0.1


def test_a_model_built_within_inference_mode_is_refused_in_words_and_data_is_not(glyph_data):
    with torch.inference_mode():
        model = build_model(config())
        split = Split(glyph_data.train.images.clone(), glyph_data.train.labels.clone(),
                      glyph_data.train.poses.clone())[:20]
    with pytest.raises(ValueError, match=r"^model: .*inference_mode.*build it outside"):
        fit(model, Data(split), config())
    trained(Data(split, classes=glyph_data.classes), pose_weight=1.0)


# ---- learning rates ------------------------------------------------------------------------------


def test_localization_lr_scale_multiplies_the_step_of_the_transformer_alone(glyph_data):
    def steps(scale):
        fields = dict(batch_size=60, learning_rate=0.1, localization_lr_scale=scale)
        model, start = trained(training_part(glyph_data, 60), **fields)[0], build_model(config())
        before = start.state_dict()
        moved = {key: value - before[key] for key, value in model.state_dict().items()}
        return (torch.cat([moved[key].flatten() for key in moved if key.startswith(part)])
                for part in ("transformer", "classifier"))

    (still, classifier), (half, same), (whole, as_well) = steps(0), steps(0.5), steps(1)
    assert not still.any() and whole.abs().max() > 1e-3
    torch.testing.assert_close(half, whole / 2, atol=1e-6, rtol=1e-3)
    assert torch.equal(classifier, same) and torch.equal(classifier, as_well) and classifier.any()


@pytest.mark.parametrize("fields", [{}, dict(model="separable"), dict(model="strong", width=0.1),
                                    dict(stn=False), dict(model="p4")])
def test_the_optimizer_is_sgd_as_asked_and_decays_matrices_only(fields):
    model = build_model(config(**fields))
    optimizer = make_optimizer(model, 0.2, 0.5, momentum=0.9, weight_decay=1e-3)
    assert type(optimizer) is torch.optim.SGD
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    # each in one group only
    assert len(group_of) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert sorted(group_of) == sorted(map(id, model.parameters()))
    normalizing = {id(p) for layer in model.modules()
                   if isinstance(layer, torch.nn.BatchNorm2d) for p in layer.parameters()}
    assert bool(normalizing) == ("model" in fields)
    for name, p in model.named_parameters():
        group, rate = group_of[id(p)], 0.1 if name.startswith("transformer") else 0.2
        decay = 0 if name.endswith("bias") or id(p) in normalizing else 1e-3
        assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (rate, rate, decay)
        assert group["momentum"] == 0.9 and group["nesterov"]
    plain = make_optimizer(model, 0.2).param_groups
    assert not any(group["nesterov"] or group["momentum"] or group["weight_decay"]
                   for group in plain)


def test_weight_decay_shrinks_what_it_is_for_and_nothing_else(glyph_data):
    """A step at a rate so low that gradients do nothing, with a decay that takes a tenth away."""
    fields = dict(model="separable", batch_size=60, learning_rate=1e-6, weight_decay=1e5)
    start = build_model(config(**fields)).state_dict()
    model, _ = trained(training_part(glyph_data, 60), **fields)
    for name, p in model.named_parameters():
        expected = 0.9 * start[name] if p.ndim > 1 else start[name]
        torch.testing.assert_close(p.detach(), expected, atol=1e-4, rtol=0)
        assert p.ndim == 1 or "regressor" in name or (p - start[name]).abs().max() > 1e-3


@given(done=st.floats(0, 1, exclude_max=True), warmup=st.floats(0.01, 0.9))
def test_the_rate_rises_in_a_straight_line_and_falls_as_its_schedule_says(done, warmup):
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups = [dict(params=[p], initial_lr=rate)
              for p, rate in zip(parameters, (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=7.0)

    def rate(schedule, warmup=0.0):
        set_learning_rate(optimizer, done, schedule, warmup)
        fast, slow = (group["lr"] for group in optimizer.param_groups)
        assert slow == pytest.approx(fast / 10)  # in all groups alike
        return pytest.approx(fast, abs=1e-9)

    rising = np.interp(done, [0, warmup, 1], [0, 1, 1])
    assert rising == rate("constant", warmup) and rate("constant") == 1
    assert np.interp(done, [0, warmup, 1], [0, 1, 0]) == rate("linear", warmup)
    assert rate("linear") == 1 - done and rate("cosine") == math.cos(math.pi * done / 2) ** 2
    over = max(0, (done - warmup) / (1 - warmup))
    assert rate("cosine", warmup) == (rising if done < warmup
                                      else (1 + math.cos(math.pi * over)) / 2)


@pytest.mark.parametrize(("fields", "rates"), [
    (dict(), [1, 1, 1, 1]), (dict(schedule="linear"), [13 / 16, 9 / 16, 5 / 16, 1 / 16]),
    (dict(warmup=0.5), [3 / 8, 7 / 8, 1, 1]),
    (dict(warmup=0.5, schedule="linear"), [3 / 8, 7 / 8, 5 / 8, 1 / 8])])
def test_every_step_of_a_run_has_the_rate_of_its_place_in_it(glyph_data, monkeypatch, fields,
                                                             rates):
    seen, call = [], Step.__call__

    def watched(step, *args):
        seen.append([group["lr"] / group["initial_lr"] for group in step.optimizer.param_groups])
        return call(step, *args)

    monkeypatch.setattr(Step, "__call__", watched)
    _, history = trained(training_part(glyph_data, 8), epochs=4, batch_size=2, **fields)
    # 4 steps an epoch, whose row tells the rate of its last one
    assert [row["learning_rate"] for row in history] == pytest.approx(
        [0.01 * rate for rate in rates])
    assert [np.unique(row).size for row in np.round(seen, 9)] == [1] * 16
    assert [row[0] for row in seen[3::4]] == pytest.approx(rates)


# ---- rows added at run time ----------------------------------------------------------------------


def test_a_family_of_ones_own_trains(glyph_data, monkeypatch):
    def shear(params):
        one, zero = torch.ones_like(params[:, 0]), torch.zeros_like(params[:, 0])
        return torch.stack([one, params[:, 0], zero, zero, one, zero], 1).reshape(-1, 2, 3)

    row = transforms.Family("shear", 1, (0,), shear, transforms.FAMILIES["affine"].to_grid)
    monkeypatch.setitem(transforms.FAMILIES, "shear", row)
    model, _ = trained(training_part(glyph_data, 20), transform="shear", learning_rate=0.1,
                       localization_lr_scale=10)
    theta = model.transform(glyph_data.test.images[:3])[1]
    assert theta.shape == (3, 2, 3) and theta[:, 0, 1].any()


def test_a_loss_of_ones_own_trains(glyph_data, monkeypatch):
    monkeypatch.setitem(LOSSES, "to_the_left", lambda alignment, known: (
        alignment.theta[:, 0, 2] - 0.5).square().mean())
    model, _ = trained(training_part(glyph_data, 40), transform="translation", epochs=8,
                       batch_size=10, extra_losses="to_the_left=10")
    theta = model.transform(glyph_data.test.images)[1]
    assert theta[:, 0, 2].mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_distortion_and_a_schedule_of_ones_own_train(numbered, monkeypatch):
    row = distortions.Distortion("turned", "rotation", {"angle": (90, 90)})
    monkeypatch.setitem(distortions.DISTORTIONS, "turned", row)
    monkeypatch.setitem(SCHEDULES, "halved", lambda left: 0.5)
    fields = dict(distortion="turned", schedule="halved", transform="rotation", batch_size=60)
    model = build_model(config(**fields), numbered)
    batches = shown_to(model)
    history = fit(model, numbered, model.config)
    assert history[0]["learning_rate"] == 0.005
    order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch_seed(0, 1)))
    expected = torch.rot90(numbered.train.images[order], 1, (2, 3)) / 255
    assert (batches[0] - expected)[..., 8:24, 8:24].abs().max() < 1e-3


# ---- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [dict(), dict(model="separable")])
def test_a_callback_gets_the_model_ready_for_use_and_may_stop(glyph_data, capsys, fields):
    calls = []

    def look(model, history):
        calls.append((model, model.training, [row["epoch"] for row in history]))
        model.train()  # what the callback leaves behind is its own affair
        if len(history) == 2:
            raise KeyboardInterrupt

    model = build_model(config(epochs=5, **fields))
    history = fit(model, training_part(glyph_data, 20), model.config, on_epoch_end=look)
    assert calls == [(model, False, [1]), (model, False, [1, 2])] and not model.training
    assert len(history) == 2 and "stopped; 2 of 5 epochs are complete" in capsys.readouterr().out


@pytest.fixture
def heard():
    """The shell has Ctrl-C ignored in what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "complete"), [(1, 0), (6, 1)])
def test_a_signal_amid_a_step_returns_the_complete_epochs(glyph_data, number, complete, heard):
    before = torch.random.get_rng_state()
    model, calls = build_model(config(epochs=3, batch_size=10)), itertools.count(1)
    normalize = model.normalize

    def interrupted(images):  # 4 steps an epoch
        if model.training and next(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return normalize(images)

    model.normalize = interrupted
    history = fit(model, training_part(glyph_data, 40), model.config)
    assert len(history) == complete and next(calls) == number + 1
    assert torch.equal(torch.random.get_rng_state(), before)
    assert evaluate(model, glyph_data.test).loss > 0  # the model can be used


@pytest.mark.parametrize("fields", [dict(), dict(stn=False)])
def test_a_loss_that_is_not_finite_stops_the_run_naming_epoch_and_step(glyph_data, monkeypatch,
                                                                       fields):
    losses, call = [], Step.__call__

    def noted(step, *args):
        loss, right = call(step, *args)
        losses.append(loss.item())
        return loss, right

    monkeypatch.setattr(Step, "__call__", noted)
    with pytest.raises(NonFiniteLoss, match=r"learning_rate \(now 100000\.0\)") as error:
        trained(training_part(glyph_data), epochs=10, learning_rate=1e5, **fields)
    first = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    assert first > 0 and len(losses) == 4 * (first // 4 + 1)  # 4 steps an epoch; it began well
    assert f"in epoch {first // 4 + 1}, step {first % 4 + 1} of 4;" in str(error.value)


def test_weights_that_the_last_step_has_spoilt_are_noticed(glyph_data, monkeypatch):
    """No loss has shown it yet."""
    call = Step.__call__

    def spoilt(step, *args):
        result = call(step, *args)
        with torch.no_grad():
            next(step.model.parameters()).fill_(math.nan)
        return result

    monkeypatch.setattr(Step, "__call__", spoilt)
    with pytest.raises(NonFiniteLoss, match=r"in epoch 1, step 1 of 1;"):
        trained(training_part(glyph_data, 20))


def test_a_validation_loss_that_is_not_finite_ends_no_run(glyph_data, tmp_path):
    """The training loss was taken before the step that let the transformer run off."""
    def run_off(model, args, output):
        return output * math.nan if not model.training else output

    model = build_model(config(epochs=2))
    model.classifier.register_forward_hook(run_off)
    data = Data(glyph_data.train[:20], glyph_data.val, None, glyph_data.classes)
    history = fit(model, data, model.config, tmp_path)
    assert [row["val_loss"] for row in history] == [None, None]
    assert json.loads(json.dumps(history, allow_nan=False)) == history
    assert len(list(tmp_path.glob("epoch-*.pt"))) == 2  # kept, and readable again
    assert fit(model, data, model.config, tmp_path) == history


# ---- distorted and augmented training ------------------------------------------------------------


def after_the_order(seed, epoch, count):
    """The generator that an epoch samples from, after it has sampled the order."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    torch.randperm(count, generator=generator)
    return generator


def shown_images(data, folder=None, **fields):
    """What each epoch of `fit` shows, [(N, C, H, W)] in the order of the training images."""
    model, count = build_model(config(**fields), data), len(data.train)
    batches = shown_to(model)
    history = fit(model, data, model.config, folder)
    epochs = torch.cat(batches).split(count)
    numbers = range(len(history) - len(epochs) + 1, len(history) + 1)
    back = [torch.randperm(count, generator=torch.Generator().manual_seed(
        epoch_seed(fields.get("seed", 0), epoch))).argsort() for epoch in numbers]
    return [images[order] for images, order in zip(epochs, back, strict=True)]


def test_training_images_are_distorted_anew_each_epoch_from_seed_and_epoch_alone(numbered):
    fields = dict(distortion="rotation", transform="rotation")
    torch.manual_seed(1)
    first, second = shown_images(numbered, epochs=2, batch_size=16, **fields)
    params = distortions.sample_params("rotation", 60, after_the_order(0, 1, 60))
    expected = distortions.apply(numbered.train.images, params)
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)
    torch.manual_seed(2)
    again = shown_images(numbered, epochs=2, batch_size=30, **fields)
    torch.testing.assert_close(torch.stack(again), torch.stack([first, second]), atol=1e-4, rtol=0)
    other, = shown_images(numbered, batch_size=60, seed=1, **fields)
    for a, b in itertools.combinations((first, second, other), 2):
        assert not torch.allclose(a, b, atol=1e-2)


def test_distorted_pictures_get_their_hole_last_so_it_does_not_tell_their_pose(numbered):
    """Its sides are the canvas's, whatever the angle: else they would say how it was turned."""
    fields = dict(distortion="rotation", flip=True, batch_size=60)
    (whole,), (cut,) = (shown_images(numbered, cutout=cutout, **fields) for cutout in (0, 9))
    changed = (whole != cut).any(1)  # (N, S, S)
    rows, columns = changed.any(2), changed.any(1)
    assert rows.any(1).all() and rows.sum(1).max() <= 9 and columns.sum(1).max() <= 9
    square = rows[:, :, None] & columns[:, None, :]
    assert (changed.sum((1, 2)) > 40).float().mean() > 0.5  # not vacuous: most lie on the picture
    colour = cut.permute(0, 2, 3, 1)[square]
    assert (colour - colour[0]).abs().max() < 1e-5  # all of each square is the mean colour


def test_training_images_are_augmented_as_seed_and_epoch_say(numbered):
    options = dict(flip=True, shift=3, cutout=6)
    first, second = shown_images(numbered, epochs=2, batch_size=16, seed=2, **options)
    for epoch, images in ((1, first), (2, second)):
        params = augment.sample_params(numbered.train.images, epoch, 2,
                                       after_the_order(2, epoch, 60), **options)
        whole = augment.apply(numbered.train.images, params)
        assert torch.equal(images, augment.cut_out(whole, params, 6))
    torch.manual_seed(5)  # another world and other batches
    again = shown_images(numbered, epochs=2, batch_size=33, seed=2, **options)
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
    assert not torch.equal(first, second)
    plain, = shown_images(numbered, batch_size=16, seed=2)
    assert torch.equal(plain, numbered.train.images)  # without it they come as they are


def test_flips_alternate_over_epochs_and_over_a_resume(numbered, tmp_path):
    whole = shown_images(numbered, epochs=3, flip=True)
    mirrored = (torch.stack(whole) == numbered.train.images.flip(-1)).flatten(2).all(2)
    assert torch.equal(mirrored[0], ~mirrored[1]) and torch.equal(mirrored[0], mirrored[2])
    assert 15 < mirrored[0].sum() < 45
    shown_images(numbered, tmp_path, epochs=1, flip=True)
    resumed = shown_images(numbered, tmp_path, epochs=3, flip=True)
    assert torch.equal(torch.stack(resumed), torch.stack(whole[1:]))


def test_augmentation_is_for_training_images_only(glyph_data):
    fields = dict(learning_rate=1e-12, flip=True, shift=4, cutout=12)
    _, (row,) = trained(glyph_data, **fields)
    plain = evaluate(build_model(config()), glyph_data.val)
    assert row["val_loss"] == pytest.approx(plain.loss, rel=1e-4)


def test_a_distortion_acts_on_the_augmented_image_on_a_larger_canvas(numbered):
    """Shifts are measured on the image, holes on the canvas; its pose is the distortion's."""
    options = dict(flip=True, shift=31, cutout=20)
    fields = dict(distortion="translation", output_size=32, pose_weight=1, **options)
    images, = shown_images(numbered, **fields)
    generator = after_the_order(0, 1, 60)
    params = augment.sample_params(numbered.train.images, 1, 0, generator, canvas=48, **options)
    augmented = augment.apply(numbered.train.images, params)
    expected = distortions.apply(augmented, distortions.sample_params("translation", 60, generator))
    corners = params[:, augment.HOLE]
    assert corners.max() > 32 - 20  # also where no image could have one
    for image, (top, left) in zip(expected, corners, strict=True):
        image[:, top:top + 20, left:left + 20] = torch.tensor([125, 123, 114])[:, None, None] / 255
    assert images.shape == (60, 3, 48, 48)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", distortions.DISTORTIONS)
def test_every_distortion_trains(glyph_data, name):
    _, (row,) = trained(training_part(glyph_data, 30, poses=False), distortion=name)
    assert math.isfinite(row["train_loss"])


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "can", "expected"), [
    ("cuda", (9, 0), "bf16"), ("cuda", (8, 0), "bf16"), ("cuda", (7, 5), "fp16"),
    ("cpu", (True, False), "bf16"), ("cpu", (False, True), "bf16"),
    ("cpu", (False, False), "fp32"), ("cpu", None, "fp32"), ("mps", (True, True), "fp32")])
def test_auto_is_a_rule_by_what_the_machine_can_do(monkeypatch, device, can, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: can)
    for name, answer in zip(CPU_HAS_BF16, can or (None, None), strict=True):
        if answer is None:  # a version of torch that cannot tell
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert {resolve("auto", torch.device(device)) for _ in range(3)} == {expected}
    for named in ("fp32", "bf16", "fp16"):
        assert resolve(named, torch.device(device)) == named


@pytest.mark.parametrize(("precision", "can", "told"), [
    ("bf16", False, "in bf16 (torch sees no instructions for it here: fp32 should be faster)\n"),
    ("bf16", True, "in bf16\n"), ("fp32", False, "in fp32\n"), ("fp32", True, "in fp32\n")])
def test_a_precision_that_the_processor_makes_up_is_told(glyph_data, capsys, monkeypatch,
                                                         precision, can, told):
    for name in CPU_HAS_BF16:
        monkeypatch.setattr(torch.cpu, name, lambda: can, raising=False)
    trained(training_part(glyph_data, 20), precision=precision)
    assert f"training on cpu {told}" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "dtype"), [
    ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_networks_compute_in_the_chosen_precision(glyph_data, precision, dtype):
    seen = []
    model = build_model(config(precision=precision))
    model.register_forward_hook(lambda module, args, output: (
        seen.append((output[0].dtype, output[1].grid.dtype)) if module.training else None))
    history = fit(model, training_part(glyph_data, 40), model.config)
    assert set(seen) == {(dtype, torch.float32)} and history[0]["precision"] == precision
    assert math.isfinite(history[0]["train_loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_validation_split_that_was_not_distorted_is_told_before_the_first_step(glyph_data):
    images, labels = glyph_data.train.images, glyph_data.train.labels
    plain = Data(Split(images[:20], labels[:20]), val=Split(images[20:30], labels[20:30]),
                 classes=glyph_data.classes)
    config = Config(device="cpu", distortion="translation", epochs=1)
    with pytest.raises(ValueError, match=r"^val: images of \(3, 32, 32\), .*data\.distorted"):
        fit(build_model(config, plain), plain, config)


def test_a_bent_distortion_of_another_name_has_no_known_pose_either(glyph_data, monkeypatch):
    wave = distortions.Distortion("wave", "tps", {"bend": (0, 0.1)}, disc=False)
    monkeypatch.setitem(distortions.DISTORTIONS, "wave", wave)
    plain = Data(Split(glyph_data.train.images[:20], glyph_data.train.labels[:20]),
                 classes=glyph_data.classes)
    config = Config(device="cpu", distortion="wave", pose_weight=1.0, epochs=1)
    with pytest.raises(ValueError, match=r"^pose_weight: 1\.0 needs a pose that is known"):
        fit(build_model(config, plain), plain, config)


@pytest.mark.parametrize("data", [None, {}, 3])
def test_what_is_no_data_is_told(data):
    config = Config(device="cpu", epochs=1)
    with pytest.raises(ValueError, match=r"^data: a \w+; must be a Data"):
        fit(build_model(config), data, config)
    if data is not None:  # None: CIFAR-10's shape
        with pytest.raises(ValueError, match=r"^data: a \w+; must be a Data"):
            build_model(config, data)
