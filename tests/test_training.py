"""fit and evaluate: numbers that equal a naive recomputation, runs that repeat to the bit, and clean ends."""

import itertools
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stn_cifar import augment, distortions, steps, training
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.steps import choose_precision, make_optimizer, transformer_loss
from stn_cifar.stn import build_model
from stn_cifar.training import NonFiniteLoss, averaged_logits, evaluate, fit
from stn_cifar.transforms import FAMILIES, inverse

REPOSITORY = Path(__file__).parents[1]


def config(**fields):
    return Config(**{"device": "cpu", "precision": "fp32", "epochs": 1, **fields})


def trained(data, seed_of_the_world=None, **fields):
    """A model after `fit`, and its history."""
    if seed_of_the_world is not None:
        torch.manual_seed(seed_of_the_world)
    model = build_model(config(**fields))
    return model, fit(model, data, config(**fields))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def only_train(data, count=None, poses=True):
    """`data` without validation, its training images cut to `count`, with or without their poses."""
    train = data.train[:count]
    return Data(Split(train.images, train.labels, train.poses if poses else None), None, data.test, data.classes,
                data.name)


def watch_batches(model):
    """A list that receives every batch of images that `model` is trained on."""
    batches, normalize = [], model.normalize

    def watched(images):
        if model.training:
            batches.append(images.clone())
        return normalize(images)

    model.normalize = watched
    return batches


@pytest.fixture
def numbered():
    """100 pictures, each with its own number in its first pixel."""
    images = torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.arange(100)
    split = Split(images, torch.arange(100) % 10)
    return Data(split, None, split, tuple("abcdefghij"), "numbered")


def orders(model, data, **fields):
    """The order, epoch by epoch, in which `fit` shows the numbered pictures."""
    batches = watch_batches(model)
    fit(model, data, config(**fields))
    numbers = torch.cat(batches)[:, 0, 0, 0].tolist()
    return [list(epoch) for epoch in zip(*[iter(numbers)] * 100, strict=True)]


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, dict(momentum=0.9), dict(stn=False), dict(transform="tps")])
def test_the_loss_goes_down(glyph_data, fields):
    rate = 0.01 if "momentum" in fields else 0.05
    data = only_train(glyph_data, 80)
    model, history = trained(data, epochs=40, batch_size=16, learning_rate=rate, **fields)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.2
    assert evaluate(model, data.train).accuracy > 0.25  # chance is 0.1


LIGHT = dict(model="light", stn=False)  # by class loss alone its transformer runs off with so few images
TAUGHT = dict(model="light", transform="rotation", pose_weight=1.0, pose_cells=36)


@pytest.mark.parametrize("fields", [dict(model="compact"), dict(model="strong", width=0.1), LIGHT,
                                    dict(TAUGHT, quarter_turns="localization"), dict(TAUGHT, quarter_turns="both"),
                                    dict(TAUGHT, transform="similarity"),
                                    dict(TAUGHT, stn=False, pose_head=True),
                                    dict(TAUGHT, shared_layers=2, pose_curriculum=1.0)])
def test_the_other_networks_learn_too_down_to_their_last_parameter(glyph_data, fields):
    data, start = only_train(glyph_data, 80), build_model(config(**fields)).state_dict()
    recipe = dict(batch_size=16, learning_rate=0.01, momentum=0.9, localization_lr_scale=0.1, schedule="linear")
    model, history = trained(data, epochs=20, **recipe, **fields)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.5
    assert evaluate(model, data.train).accuracy > 0.25  # chance is 0.1; evaluation has the running statistics
    assert [name for name, value in model.state_dict().items() if torch.equal(value, start[name])] == []


def test_a_model_of_another_config_is_refused(glyph_data):
    for told, other in (((dict(TAUGHT)), dict(model="light", transform="rotation")), (dict(), dict(stn=False))):
        for built, asked in ((told, other), (other, told)):
            with pytest.raises(ValueError, match=r"^(stn|pose_cells): .* but the model was built with"):
                fit(build_model(config(**built)), glyph_data, config(**asked))


@pytest.mark.parametrize("fields", [dict(num_classes=9), dict(num_classes=11), dict(image_size=36), dict(channels=1)])
def test_a_config_for_other_pictures_is_refused_before_training(glyph_data, fields):
    name, = fields
    with pytest.raises(ValueError, match=f"^{name}: {fields[name]}, but glyphs has"):
        fit(build_model(config(**fields)), glyph_data, config(**fields))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", [dict(model="compact"), dict(model="strong", width=0.1)])
def test_one_image_left_over_is_a_batch_for_normalization_too(glyph_data, fields, precision):
    batches = dict(batch_size=101, precision=precision)  # 101, 101 and 1
    _, (row,) = trained(only_train(glyph_data), flip=True, shift=2, cutout=4, label_smoothing=0.1, **batches, **fields)
    assert math.isfinite(row["train_loss"])


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    return model


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_label_smoothing_spreads_a_share_of_the_target_over_all_classes(glyph_data, share):
    fields = dict(learning_rate=1e-12, label_smoothing=share)
    model, images = without_dropout(build_model(config(**fields))), glyph_data.train.images
    with torch.no_grad():
        model.classifier.head[-1].weight.mul_(20)  # answers that differ, or any target would cost the same
        logits = model(images)
    labels = logits.argmax(1)  # it is right throughout, so that smoothing costs a lot
    split, logits = Split(images, labels), logits.double().numpy()
    row, = fit(model, Data(split, split, split, glyph_data.classes, "guesses"), config(**fields))
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    hit, all_classes = logs[np.arange(203), labels.numpy()].mean(), logs.mean()
    assert row["train_loss"] == pytest.approx(-(1 - share) * hit - share * all_classes, rel=1e-5)
    assert hit > all_classes + 0.5
    assert row["val_loss"] == pytest.approx(-hit, rel=1e-5)  # measuring knows nothing of it


def test_a_row_of_history_tells_the_epoch_in_plain_numbers(glyph_data):
    _, history = trained(glyph_data, epochs=2, learning_rate=0.02)
    keys = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "precision",
            "seconds"]
    assert [list(row) for row in history] == [keys, keys]
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(row["learning_rate"] == 0.02 and 0 < row["seconds"] < 60 for row in history)
    assert all(0 <= row["train_accuracy"] <= 1 and row["train_loss"] > 0 for row in history)
    assert json.loads(json.dumps(history)) == history
    _, history = trained(only_train(glyph_data))
    assert list(history[0]) == [key for key in keys if not key.startswith("val")]


def test_validation_is_measured_after_each_epoch_on_the_validation_split(glyph_data):
    measured = []
    model = build_model(config(epochs=2))

    def measure(model, history):
        val = evaluate(model, glyph_data.val)
        measured.append((val.loss, val.accuracy))

    history = fit(model, glyph_data, config(epochs=2), on_epoch_end=measure)
    assert [(row["val_loss"], row["val_accuracy"]) for row in history] == measured
    test = evaluate(model, glyph_data.test)
    assert measured[0] != measured[1] != (test.loss, test.accuracy)


@pytest.mark.parametrize("batch_size", [64, 203, 202])
def test_training_metrics_count_every_image_once_even_those_of_the_ragged_last_batch(glyph_data, batch_size):
    fields = dict(batch_size=batch_size, learning_rate=1e-12)  # the weights stand still
    model = without_dropout(build_model(config(**fields)))
    row, = fit(model, only_train(glyph_data), config(**fields))
    with torch.no_grad():
        logits = torch.cat([model(image[None]) for image in glyph_data.train.images]).double()
    each = F.cross_entropy(logits, glyph_data.train.labels, reduction="none")
    assert row["train_loss"] == pytest.approx(each.mean().item(), rel=1e-6)
    assert row["train_accuracy"] == (logits.argmax(1) == glyph_data.train.labels).sum().item() / 203
    # a mean of the batches' means would be another number, could that tolerance not tell it
    order = torch.randperm(203, generator=torch.Generator().manual_seed(training.epoch_seed(0, 1)))
    of_means = torch.stack([each[index].mean() for index in order.split(batch_size)]).mean().item()
    assert (of_means == pytest.approx(each.mean().item(), rel=1e-6)) == (batch_size == 203)


def test_training_loss_includes_the_terms_of_the_transformer(glyph_data):
    fields = dict(learning_rate=1e-12, seed=1)
    _, (plain,) = trained(only_train(glyph_data), **fields)
    _, (posed,) = trained(only_train(glyph_data), pose_weight=2, **fields)
    # the transformer still answers the identity: what is left is the pose itself
    grid = FAMILIES["affine"].grid(FAMILIES["affine"].identity().repeat(203, 1), 32)
    term = transformer_loss(grid, glyph_data.train.poses, config(pose_weight=2)).item()
    assert term > 0.1 and posed["train_loss"] - plain["train_loss"] == pytest.approx(term, rel=1e-3)


def test_a_batch_larger_than_the_data_is_one_step_with_all_of_it(glyph_data):
    data = only_train(glyph_data)
    large, history = trained(data, batch_size=100_000)
    exact, _ = trained(data, batch_size=203)
    ragged, _ = trained(data, batch_size=202)
    assert same_weights(large, exact) and not same_weights(large, ragged)
    assert len(history) == 1


def test_progress_is_one_line_with_what_is_left_and_what_the_epoch_brought(glyph_data, capsys):
    trained(glyph_data, epochs=2)
    out, err = capsys.readouterr()
    last = out.strip().rpartition("\r")[2]
    assert "100 %" in last and "<" in last and "epoch 2/2" in last and "val" in last and "\n" not in last
    assert err == ""


# ---- repeating ------------------------------------------------------------------------------------------------------


def test_a_seed_fixes_the_run_to_the_bit_whatever_the_global_random_state(glyph_data):
    first, history = trained(glyph_data, seed_of_the_world=1, epochs=2, seed=3)
    again, repeated = trained(glyph_data, seed_of_the_world=2, epochs=2, seed=3)
    assert same_weights(first, again)
    assert [dict(row, seconds=0) for row in history] == [dict(row, seconds=0) for row in repeated]
    other, _ = trained(glyph_data, seed_of_the_world=1, epochs=2, seed=4)
    assert not same_weights(first, other)


def test_the_seed_of_training_alone_makes_another_run(glyph_data):
    runs = []
    for seed in (0, 1):
        model = build_model(config())
        fit(model, glyph_data, config(seed=seed))
        runs.append(model)
    assert not same_weights(*runs)


def test_the_global_random_state_is_left_as_it_was(glyph_data):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    trained(glyph_data, distortion="rotation", precision="auto")
    assert torch.equal(torch.random.get_rng_state(), before)
    broken = build_model(config())
    broken.normalize = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):  # also where training breaks off in the midst of an epoch
        fit(broken, glyph_data, config())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_data_order_depends_on_seed_and_epoch_alone(numbered):
    first = orders(build_model(config()), numbered, epochs=3, batch_size=16, seed=1)
    assert all(sorted(epoch) == list(range(100)) for epoch in first)  # each picture once an epoch
    assert first[0] != first[1] != first[2] != first[0] and first[0] != list(range(100))
    torch.manual_seed(5)  # another world, model, family, batch, rate and number of epochs
    other_model = build_model(config(transform="rotation", seed=8))
    assert orders(other_model, numbered, epochs=2, batch_size=33, learning_rate=0.1, seed=1) == first[:2]
    assert orders(build_model(config()), numbered, epochs=1, batch_size=16, seed=2)[0] not in first


def test_epochs_of_all_seeds_draw_from_seeds_of_their_own():
    pairs = list(itertools.product((0, 1, 2, 1000, 2**31 - 1), (1, 2, 50, 99_999)))
    seeds = {training.epoch_seed(*pair) for pair in pairs}
    assert len(seeds) == len(pairs) and max(seeds) < 2**63  # what a torch.Generator takes


# ---- how fast the localization network learns -----------------------------------------------------------------------


def test_localization_lr_scale_multiplies_the_step_of_the_localization_network_alone(glyph_data):
    def steps(scale):
        fields = dict(batch_size=203, learning_rate=0.1, localization_lr_scale=scale)
        model, start = trained(only_train(glyph_data), **fields)[0], build_model(config())
        moved = {key: value - start.state_dict()[key] for key, value in model.state_dict().items()}
        return (torch.cat([moved[key].flatten() for key in moved if key.startswith(part)])
                for part in ("localization", "classifier"))

    (still, classifier), (half, same), (whole, as_well) = steps(0), steps(0.5), steps(1)
    assert not still.any() and whole.abs().max() > 1e-3
    torch.testing.assert_close(half, whole / 2, atol=1e-6, rtol=1e-3)
    assert torch.equal(classifier, same) and torch.equal(classifier, as_well) and classifier.any()


def test_scale_zero_freezes_the_localization_network_over_several_epochs(glyph_data):
    start = build_model(config()).localization
    frozen, _ = trained(glyph_data, epochs=2, localization_lr_scale=0, learning_rate=0.05)
    assert same_weights(frozen.localization, start)
    learning, _ = trained(glyph_data, epochs=2, localization_lr_scale=0.1, learning_rate=0.05)
    assert not same_weights(learning.localization, start)


@pytest.mark.parametrize("fields", [{}, dict(model="compact"), dict(model="strong", width=0.1), dict(stn=False)])
def test_the_optimizer_is_sgd_as_configured_and_decays_matrices_only(fields):
    model = build_model(config(**fields))
    optimizer = make_optimizer(model, config(learning_rate=0.2, localization_lr_scale=0.5, momentum=0.9,
                                             weight_decay=1e-3, **fields))
    assert type(optimizer) is torch.optim.SGD
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == sum(len(group["params"]) for group in optimizer.param_groups)  # each in one group only
    assert sorted(group_of) == sorted(map(id, model.parameters()))
    normalizing = {id(p) for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)
                   for p in layer.parameters()}
    assert bool(normalizing) == ("model" in fields)
    for name, p in model.named_parameters():
        group = group_of[id(p)]
        rate = 0.1 if name.startswith("localization") else 0.2
        decay = 0 if name.endswith("bias") or id(p) in normalizing else 1e-3
        assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (rate, rate, decay), name
        assert group["momentum"] == 0.9 and group["nesterov"]
    plain = make_optimizer(model, config(**fields))
    assert not any(group["nesterov"] or group["momentum"] or group["weight_decay"] for group in plain.param_groups)


def test_weight_decay_shrinks_what_it_is_for_and_nothing_else(glyph_data):
    """One step at a rate so low that the gradients do nothing, with a decay that takes a tenth away."""
    fields = dict(model="compact", batch_size=203, learning_rate=1e-6, localization_lr_scale=1.0)
    data, start = only_train(glyph_data), build_model(config(**fields)).state_dict()
    model, _ = trained(data, weight_decay=1e5, **fields)
    for name, p in model.named_parameters():
        expected = 0.9 * start[name] if p.ndim > 1 else start[name]
        torch.testing.assert_close(p.detach(), expected, atol=1e-4, rtol=0)
        assert p.ndim == 1 or "regressor" in name or (p - start[name]).abs().max() > 1e-3


# ---- the learning rate over the run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "rates"), [
    (dict(), [1, 1, 1, 1]), (dict(schedule="linear"), [13 / 16, 9 / 16, 5 / 16, 1 / 16]),
    (dict(warmup=0.5), [3 / 8, 7 / 8, 1, 1]), (dict(warmup=0.5, schedule="linear"), [3 / 8, 7 / 8, 5 / 8, 1 / 8])])
def test_each_epoch_ends_with_the_rate_of_its_last_step(glyph_data, fields, rates):
    few = only_train(glyph_data, 8)  # 4 steps an epoch
    _, history = trained(few, epochs=4, batch_size=2, learning_rate=0.01, **fields)
    assert [row["learning_rate"] for row in history] == pytest.approx([0.01 * rate for rate in rates])


@pytest.mark.parametrize("fields", [dict(warmup=0.5), dict(warmup=0.5, schedule="linear"), dict(schedule="linear")])
def test_the_rate_of_every_step_follows_the_schedule(glyph_data, monkeypatch, fields):
    seen, call = [], steps.Step.__call__

    def watched(step, index):
        seen.append([group["lr"] / group["initial_lr"] for group in step.optimizer.param_groups])
        return call(step, index)

    monkeypatch.setattr(steps.Step, "__call__", watched)
    trained(only_train(glyph_data, 8), epochs=3, batch_size=2, **fields)
    done = np.arange(12) / 12
    expected = np.interp(done, [0, 0.5, 1], [0, 1, 0 if "schedule" in fields else 1])
    if "warmup" not in fields:
        expected = 1 - done
    assert np.allclose(seen, expected[:, None])  # in all groups alike


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_on_epoch_end_is_called_once_an_epoch_with_model_and_history(glyph_data):
    calls = []
    model = build_model(config())
    history = fit(model, only_train(glyph_data), config(epochs=3),
                  on_epoch_end=lambda m, h: calls.append((m, [row["epoch"] for row in h])))
    assert calls == [(model, [1]), (model, [1, 2]), (model, [1, 2, 3])] and len(history) == 3


@pytest.mark.parametrize("fields", [dict(), dict(model="compact")])
def test_a_model_is_handed_out_in_evaluation_mode(glyph_data, fields):
    modes = []

    def look(model, history):
        modes.append(model.training)
        model.train()  # what the callback leaves behind is its own affair
        if len(history) == 2:
            raise KeyboardInterrupt

    model = build_model(config(**fields))
    fit(model, only_train(glyph_data, 80), config(epochs=3, **fields), on_epoch_end=look)
    assert modes == [False, False] and not model.training


def test_ctrl_c_in_the_callback_returns_the_history_so_far(glyph_data, capsys):
    def stop(model, history):
        if len(history) == 2:
            raise KeyboardInterrupt

    history = fit(build_model(config()), only_train(glyph_data), config(epochs=5), on_epoch_end=stop)
    assert [row["epoch"] for row in history] == [1, 2]
    assert "stopped; 2 of 5 epochs are complete" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "complete"), [(1, 0), (6, 1)])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_midst_of_a_step_returns_the_complete_epochs(glyph_data, number, complete, stop):
    torch.manual_seed(3)
    before, handler = torch.random.get_rng_state(), signal.getsignal(stop)
    model, calls = build_model(config()), itertools.count(1)
    normalize = model.normalize

    def interrupted(images):  # 4 steps an epoch
        if next(calls) == number:
            signal.raise_signal(stop)
        return normalize(images)

    model.normalize = interrupted
    history = fit(model, only_train(glyph_data), config(epochs=3))
    assert len(history) == complete and next(calls) == number + 1
    assert torch.equal(torch.random.get_rng_state(), before) and signal.getsignal(stop) is handler
    assert evaluate(model, glyph_data.test).loss > 0  # the model can be used


def test_other_errors_in_the_callback_are_not_swallowed(glyph_data):
    def fail(model, history):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        fit(build_model(config()), only_train(glyph_data), config(), on_epoch_end=fail)


def test_a_real_ctrl_c_ends_a_process_cleanly():
    program = """
import torch
from stn_cifar import Config, build_model, fit
from stn_cifar.data import Data, Split
split = Split(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.arange(64) % 10)
config = Config(device="cpu", precision="fp32", epochs=1_000_000)
ready = lambda model, history: len(history) == 2 and print("READY", flush=True)
history = fit(build_model(config), Data(split, None, split, tuple("abcdefghij"), "x"), config, on_epoch_end=ready)
print("RETURNED", len(history), flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    try:
        assert any("READY" in line for line in child.stdout)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 0 and err == ""
    assert "stopped; " in out and int(out.split("RETURNED")[1]) >= 2


@pytest.mark.parametrize("fields", [dict(learning_rate=1e5), dict(learning_rate=1e5, stn=False)])
def test_a_loss_that_is_not_finite_stops_the_run_naming_epoch_and_step(glyph_data, monkeypatch, fields):
    losses, cross_entropy = [], F.cross_entropy

    def noted(*args, **kwargs):
        loss = cross_entropy(*args, **kwargs)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(training.F, "cross_entropy", noted)
    with pytest.raises(NonFiniteLoss) as error:
        trained(only_train(glyph_data), epochs=10, **fields)
    first = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))  # 4 steps an epoch
    assert first > 0  # it began well
    assert f"in epoch {first // 4 + 1}, step {first % 4 + 1} of 4;" in str(error.value)
    assert str(losses[first]) in str(error.value)
    assert "learning_rate (now 100000.0)" in str(error.value) and len(losses) == 4 * (first // 4 + 1)


# ---- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1000, 130, 37, 1])
def test_evaluate_equals_a_naive_loop_in_float64(glyph_data, batch_size):
    model, _ = trained(glyph_data, epochs=5, learning_rate=0.05, batch_size=16)
    metrics = evaluate(model, glyph_data.test, batch_size)
    confusion, loss, model64 = np.zeros((10, 10), dtype=int), 0.0, model.double().eval()
    model64.localization.float()  # theta and grid are float32 always
    with torch.no_grad():
        for image, label in zip(glyph_data.test.images, glyph_data.test.labels, strict=True):
            x = model64.normalize(image[None])
            theta = model64.family.theta(model64.localization(x.float()))
            grid = model64.family.grid_of(theta.double(), 32)
            logits = model64.classifier(F.grid_sample(x, grid, align_corners=False))[0].numpy()
            loss -= logits[label] - np.log(np.exp(logits).sum())
            confusion[label, logits.argmax()] += 1
    assert metrics.loss == pytest.approx(loss / 130, rel=1e-5)
    assert metrics.accuracy == np.trace(confusion) / 130
    assert metrics.confusion.tolist() == confusion.tolist() and metrics.confusion.dtype == torch.int64
    assert len(np.unique(confusion.sum(0))) > 1  # not one answer for all: a transposed matrix would show
    model.float()


def test_rows_of_the_confusion_are_true_classes(glyph_data):
    model = build_model(config())
    with torch.no_grad():
        model.classifier.head[-1].weight.zero_()
        model.classifier.head[-1].bias.copy_(torch.eye(10)[3])  # class 3, whatever it is
    metrics = evaluate(model, glyph_data.test)
    counts = torch.bincount(glyph_data.test.labels, minlength=10)
    assert torch.equal(metrics.confusion, counts[:, None] * torch.eye(10, dtype=torch.int64)[3])
    assert metrics.accuracy == counts[3].item() / 130


@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_restores_the_mode_even_where_it_fails(glyph_data, mode):
    model = build_model(config()).train(mode)
    with pytest.raises(ValueError, match=r"^images: "):
        evaluate(model, Split(glyph_data.test.images[..., :28, :28], glyph_data.test.labels))
    assert {module.training for module in model.modules()} == {mode}


@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_has_no_dropout_and_restores_the_mode(glyph_data, mode):
    model = build_model(config()).train(mode)
    torch.manual_seed(0)
    first = evaluate(model, glyph_data.test)
    torch.manual_seed(1)
    assert evaluate(model, glyph_data.test).loss == first.loss
    assert {module.training for module in model.modules()} == {mode}
    model.train()
    with torch.no_grad():  # what dropout would have done
        noisy = F.cross_entropy(model(glyph_data.test.images), glyph_data.test.labels).item()
    assert abs(noisy - first.loss) > 1e-4
    assert all(p.grad is None for p in model.parameters())


# ---- test-time averaging --------------------------------------------------------------------------------------------


def six_views(image):
    """[(weight, picture)] of one picture (C, S, S), by numpy: as it is, up left, down right; each also mirrored."""
    size = image.shape[-1]
    wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    views = []
    for corner, weight in ((1, 1 / 4), (2, 1 / 8), (0, 1 / 8)):
        view = wide[:, corner:corner + size, corner:corner + size]
        views += [(weight, view), (weight, view[:, :, ::-1])]
    return [(weight, torch.from_numpy(view.copy())) for weight, view in views]


@pytest.mark.parametrize(("batch_size", "fields"), [(130, dict()), (37, dict(model="compact")), (1, dict(stn=False))])
def test_averaged_metrics_equal_a_loop_over_pictures_and_views(glyph_data, batch_size, fields):
    model, _ = trained(glyph_data, learning_rate=0.05, batch_size=16, localization_lr_scale=1.0, **fields)
    test, rows = glyph_data.test[:50], []
    with torch.no_grad():
        for image in test.images.numpy():
            weights, views = zip(*six_views(image), strict=True)
            rows.append(np.average(model.eval()(torch.stack(views)).double().numpy(), axis=0, weights=weights))
    logits, labels = np.stack(rows), test.labels.numpy()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), labels]
    metrics = evaluate(model.train(), test, batch_size, averaged=True)
    assert model.training  # restored
    assert metrics.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics.accuracy == (logits.argmax(1) == labels).mean()
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (labels, logits.argmax(1)), 1)
    assert metrics.confusion.tolist() == counts.tolist()
    single = evaluate(model, test, batch_size)
    assert abs(single.loss - metrics.loss) > 1e-4  # another measurement
    plain = evaluate(model, test, batch_size, averaged=False)
    assert plain[:2] == single[:2] and torch.equal(plain.confusion, single.confusion)


def test_where_all_views_are_alike_averaging_changes_nothing(glyph_data):
    """The negative control: pictures of one colour each, and a model that answers the same whatever it sees."""
    model, _ = trained(glyph_data, epochs=2, learning_rate=0.02, stn=False)
    levels = torch.arange(0, 256, 5, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    plain = Split(levels, torch.arange(len(levels)) % 10)
    assert evaluate(model, plain, averaged=True).loss == pytest.approx(evaluate(model, plain).loss, rel=1e-6)
    with torch.no_grad():
        model.classifier.head[-1].weight.zero_()
    single, averaged = evaluate(model, glyph_data.test), evaluate(model, glyph_data.test, averaged=True)
    assert averaged.loss == pytest.approx(single.loss, rel=1e-6) and averaged.accuracy == single.accuracy


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_plain_pair_counts_as_much_as_both_shifted_pairs(dtype):
    """A "model" that answers the picture's four corners tells which views it got, and how much each of them counts."""
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=dtype).view(1, 1, 3, 3)

    def corners(view):
        assert view.dtype == dtype and view.shape == image.shape
        return view[:, 0, [0, 0, 2, 2], [0, 2, 0, 2]].double()

    plain, up_left, down_right = ([1, 3, 7, 9], [5, 6, 8, 9], [1, 2, 4, 5])
    both_ways = [np.array(view)[[0, 1, 2, 3]] + np.array(view)[[1, 0, 3, 2]] for view in (plain, up_left, down_right)]
    expected = 0.25 * both_ways[0] + 0.125 * both_ways[1] + 0.125 * both_ways[2]
    assert averaged_logits(corners, image).tolist() == [expected.tolist()]


# ---- the loss's terms for the transformer ---------------------------------------------------------------------------


def grid_of(name, params, count=3, size=32):
    return FAMILIES[name].grid(torch.tensor([params], dtype=torch.float64).expand(count, -1), size)


MEAN_SQUARE = 2 * (1 - 1 / 32**2) / 3  # of the distance of 32 x 32 pixels' centres from the middle


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("weights", [dict(outside_weight=1), dict(scale_weight=1, max_scale=1), dict(scale_weight=1),
                                     dict(identity_weight=1)])
def test_at_the_identity_no_term_costs_anything(name, weights):
    grid = FAMILIES[name].grid(FAMILIES[name].identity().repeat(4, 1), 32)
    loss = transformer_loss(grid, None, config(**weights)).item()
    if "outside_weight" in weights or weights == dict(scale_weight=1):
        assert loss == 0  # a margin lies between
    else:
        assert 0 <= loss < 1e-12  # a distance from the identity, to rounding


def test_without_weights_there_is_no_term():
    assert transformer_loss(grid_of("affine", [9.0, 9, 9, 9, 9, 9]), None, config()) == 0


@pytest.mark.parametrize(("name", "params", "expected"), [
    # per axis: x - 1 beyond the edge, averaged over the picture, and then over both axes
    ("translation", [1.0, 0.0], 0.25 / 2), ("translation", [3.0, 0.0], 2 / 2), ("translation", [0.0, -3.0], 2 / 2),
    ("translation", [3.0, 3.0], 2), ("attention", [math.log(2), 0.0, 0.0], 0.25),
    ("attention", [-math.log(2), 0.5, 0.5], 0)])
def test_outside_is_the_mean_distance_beyond_the_edge(name, params, expected):
    for weight in (1, 2.5):
        loss = transformer_loss(grid_of(name, params), None, config(outside_weight=weight)).item()
        assert loss == pytest.approx(weight * expected, abs=1e-12)


@pytest.mark.parametrize(("name", "params", "expected"), [
    ("translation", [0.3, -0.4], 0.25), ("attention", [math.log(1.7), 0.0, 0.0], 0.7**2 * MEAN_SQUARE),
    ("rotation", [math.pi], 4 * MEAN_SQUARE), ("rotation", [0.5], (2 - 2 * math.cos(0.5)) * MEAN_SQUARE)])
def test_identity_is_the_mean_squared_distance_from_where_a_sample_belongs(name, params, expected):
    for weight in (1, 2.5):
        loss = transformer_loss(grid_of(name, params), None, config(identity_weight=weight)).item()
        assert loss == pytest.approx(weight * expected, abs=1e-9)


@pytest.mark.parametrize(("name", "params", "excess"), [
    ("attention", [math.log(2), 0.0, 0.0], math.log(2 / 1.5)),
    ("attention", [-math.log(2), 0.7, 0.0], math.log(2 / 1.5)),
    ("attention", [math.log(1.49), 0.0, 0.0], 0), ("attention", [-math.log(1.49), 0.0, 0.0], 0),
    ("similarity", [2.0, math.log(3), 0.3, 5.0], math.log(3 / 1.5)), ("rotation", [1.0], 0),
    ("translation", [5.0, 5.0], 0)])
def test_scale_is_the_squared_excess_of_the_log_scale(name, params, excess):
    for weight in (1, 2.5):
        loss = transformer_loss(grid_of(name, params), None, config(scale_weight=weight, max_scale=1.5)).item()
        assert loss == pytest.approx(weight * excess**2, abs=1e-9)


def test_scale_is_penalized_image_by_image():
    # one image zoomed out and one zoomed in by as much do not cancel
    params = torch.tensor([[math.log(3), 0, 0], [-math.log(3), 0, 0]], dtype=torch.float64)
    loss = transformer_loss(FAMILIES["attention"].grid(params, 32), None, config(scale_weight=1, max_scale=1))
    assert loss.item() == pytest.approx(math.log(3) ** 2)


@pytest.mark.parametrize("name", ["rotation", "rts", "affine", "projective", "translation"])
def test_pose_is_zero_where_the_known_pose_is_undone_and_positive_otherwise(name):
    pose = distortions.draw(name, 20, torch.Generator().manual_seed(0)).theta.double()
    family = FAMILIES["projective" if name == "projective" else "affine"]
    good = family.grid_of(inverse(pose), 32)
    assert transformer_loss(good, pose, config(pose_weight=1)).item() == pytest.approx(0, abs=1e-9)
    for bad in (family.grid_of(pose, 32), family.grid(family.identity().double().repeat(20, 1), 32), good.flip(0)):
        assert transformer_loss(bad, pose, config(pose_weight=1)).item() > 0.01


def test_pose_is_the_mean_squared_distance_left():
    turn = FAMILIES["rotation"].theta(torch.tensor([[0.5]], dtype=torch.float64))
    loss = transformer_loss(grid_of("rotation", [0.2], 1), turn, config(pose_weight=3)).item()
    assert loss == pytest.approx(3 * (2 - 2 * math.cos(0.7)) * MEAN_SQUARE, abs=1e-9)


def test_terms_add_up():
    grid, pose = grid_of("similarity", [0.5, 0.9, 0.3, -0.2], 1), torch.eye(2, 3, dtype=torch.float64)[None]
    weights = dict(outside_weight=1, identity_weight=2, scale_weight=3, pose_weight=4)
    single = [transformer_loss(grid, pose, config(**{key: value})).item() for key, value in weights.items()]
    assert min(single) > 0
    assert transformer_loss(grid, pose, config(**weights)).item() == pytest.approx(sum(single))


def measured(model, data, **weight):
    """One term of the loss, with weight 1, of the answers to the training images."""
    with torch.no_grad():
        grid = model.align(model.normalize(data.train.images)).grid
        return transformer_loss(grid, data.train.poses, config(**weight)).item()


@pytest.mark.parametrize(("weight", "start"), [
    ("outside_weight", [0.0, 0.0, 0.7, 0.0]), ("identity_weight", [0.6, 0.0, 0.0, 0.0]),
    ("scale_weight", [0.0, 0.9, 0.0, 0.0]), ("pose_weight", [0.0, 0.0, 0.6, 0.6])])
def test_each_guard_rail_brings_down_what_it_is_named_for(glyph_data, weight, start):
    data, after = only_train(glyph_data, 100), {}
    for value in (0, 3):
        fields = dict(transform="similarity", epochs=10, batch_size=20, localization_lr_scale=1.0, **{weight: value})
        model = build_model(config(**fields))
        with torch.no_grad():
            model.localization.regressor[-1].bias.copy_(torch.tensor(start))
        before = measured(model, data, **{weight: 1})
        fit(model, data, config(**fields))
        after[value] = measured(model, data, **{weight: 1})
    assert before > 0.02 and after[3] < 0.5 * before
    assert after[3] < 0.6 * after[0]  # it is not the cross-entropy that does it


@pytest.mark.parametrize("distortion", [None, "elastic"])
def test_a_pose_loss_without_a_known_matrix_is_refused(glyph_data, distortion):
    fields = dict(pose_weight=1.0, distortion=distortion)
    with pytest.raises(ValueError, match=r"^pose_weight: 1\.0 needs a pose .*'glyphs'"):
        trained(only_train(glyph_data, poses=False), **fields)


@pytest.mark.parametrize("fields", [dict(distortion="rts"), dict(distortion="projective", transform="projective")])
def test_a_pose_loss_takes_the_pose_of_the_distortion(glyph_data, fields):
    data = only_train(glyph_data, poses=False)
    _, (with_pose,) = trained(data, learning_rate=1e-12, pose_weight=1, **fields)
    _, (without,) = trained(data, learning_rate=1e-12, **fields)
    drawn = distortions.draw(fields["distortion"], 203, after_the_order(0, 1, 203))
    family = FAMILIES[fields.get("transform", "affine")]
    grid = family.grid(family.identity().repeat(203, 1), 32)
    term = transformer_loss(grid, drawn.theta, config(pose_weight=1)).item()
    assert with_pose["train_loss"] - without["train_loss"] == pytest.approx(term, rel=1e-3)


# ---- distorted training ---------------------------------------------------------------------------------------------


def after_the_order(seed, epoch, count):
    """The generator that an epoch draws its poses from: after it has drawn the order."""
    generator = torch.Generator().manual_seed(training.epoch_seed(seed, epoch))
    torch.randperm(count, generator=generator)
    return generator


def test_training_images_are_distorted_anew_each_epoch_from_seed_and_epoch_alone(numbered):
    def shown(world, **fields):
        torch.manual_seed(world)
        model = build_model(config(transform="rotation"))
        batches = watch_batches(model)
        fit(model, numbered, config(distortion="rotation", epochs=2, **fields))
        return torch.cat(batches).split(100)

    first, second = shown(world=1, batch_size=16)
    assert first.dtype == torch.float32 and first.min() >= 0 and first.max() <= 1
    for again, before in zip(shown(world=2, batch_size=30), (first, second), strict=True):
        assert torch.allclose(again, before, atol=1e-5)
    other, _ = shown(world=1, batch_size=16, seed=1)
    for a, b in itertools.combinations((first, second, other), 2):
        assert not torch.allclose(a.mean(0), b.mean(0), atol=1e-3)
    # each picture in the pose drawn for it, whatever the batch it came in
    order = torch.randperm(100, generator=torch.Generator().manual_seed(training.epoch_seed(0, 1)))
    drawn = distortions.draw("rotation", 100, after_the_order(0, 1, 100))
    expected = distortions.apply(numbered.train.images[order], drawn[order])
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)


# ---- augmented training ---------------------------------------------------------------------------------------------


def shown_pictures(data, folder=None, **fields):
    """What each epoch of `fit` shows, (epoch, picture) in the order of the training images."""
    model = build_model(config(**fields))
    batches = watch_batches(model)
    history = fit(model, data, config(**fields), folder)
    epochs, count = torch.cat(batches).split(len(data.train)), len(data.train)
    first = len(history) - len(epochs) + 1
    orders = [torch.randperm(count, generator=torch.Generator().manual_seed(
        training.epoch_seed(fields.get("seed", 0), epoch))) for epoch in range(first, len(history) + 1)]
    return [pictures[order.argsort()] for pictures, order in zip(epochs, orders, strict=True)]


def test_training_images_are_augmented_as_seed_and_epoch_say(numbered):
    fields = dict(flip=True, shift=3, cutout=6, seed=2)
    first, second = shown_pictures(numbered, epochs=2, batch_size=16, **fields)
    for epoch, pictures in ((1, first), (2, second)):
        rows = augment.draw(config(**fields), numbered.train.images, epoch, after_the_order(2, epoch, 100))
        assert torch.equal(pictures, augment.apply(numbered.train.images, rows, 6))
    torch.manual_seed(5)  # another world and other batches
    again = shown_pictures(numbered, epochs=2, batch_size=33, learning_rate=0.02, **fields)
    assert torch.equal(again[0], first) and torch.equal(again[1], second) and not torch.equal(first, second)
    plain, = shown_pictures(numbered, batch_size=16, seed=2)
    assert torch.equal(plain, numbered.train.images)  # and without it they come as they are


def test_flips_alternate_over_epochs_and_over_a_resume(numbered, tmp_path):
    images = numbered.train.images
    first, second, third = shown_pictures(numbered, epochs=3, flip=True)
    mirrored = [torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(shown, images, strict=True)])
                for shown in (first, second, third)]
    assert torch.equal(mirrored[0], ~mirrored[1]) and torch.equal(mirrored[0], mirrored[2])
    assert 30 < mirrored[0].sum() < 70
    shown_pictures(numbered, tmp_path, epochs=1, flip=True)
    assert [torch.equal(*pair) for pair in zip(shown_pictures(numbered, tmp_path, epochs=3, flip=True),
                                               (second, third), strict=True)] == [True, True]


def test_augmentation_is_for_training_images_only(glyph_data):
    fields = dict(learning_rate=1e-12, flip=True, shift=4, cutout=12)
    model, (row,) = trained(glyph_data, **fields)
    val = evaluate(model, glyph_data.val)
    assert (row["val_loss"], row["val_accuracy"]) == (val.loss, val.accuracy)
    assert val.loss == pytest.approx(evaluate(build_model(config()), glyph_data.val).loss, rel=1e-5)


def test_a_distortion_acts_on_the_augmented_picture_and_its_pose_is_the_known_one(numbered):
    """The canvas is larger than the picture: shifts and holes are measured on the picture."""
    fields = dict(distortion="translation", image_size=48, output_size=32, pose_weight=1, flip=True, shift=31,
                  cutout=20)
    pictures, = shown_pictures(numbered, **fields)
    generator = after_the_order(0, 1, 100)
    rows = augment.draw(config(**fields), numbered.train.images, 1, generator)
    expected = distortions.apply(augment.apply(numbered.train.images, rows, 20),
                                 distortions.draw("translation", 100, generator))
    torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"^shift: 32 pixels, in pictures of 32; must be <= 31"):
        shown_pictures(numbered, **fields | dict(shift=32))


@pytest.mark.parametrize("fields", [dict(flip=True), dict(shift=1)])
def test_a_pose_that_augmentation_would_make_wrong_is_refused(glyph_data, fields):
    with pytest.raises(ValueError, match=r"^pose_weight: 0\.5 with flip=.* and shift=.*pose_weight=0"):
        trained(only_train(glyph_data), pose_weight=0.5, **fields)
    trained(only_train(glyph_data, 20), pose_weight=0.5, cutout=4)  # a hole leaves the pose as it is
    trained(only_train(glyph_data, 20), pose_weight=0.5, distortion="rotation", **fields)  # a pose of its own


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_distortion_on_a_larger_canvas_trains(glyph_data, precision):
    fields = dict(distortion="translation", image_size=48, output_size=32, precision=precision)
    model = build_model(config(**fields))
    batches = watch_batches(model)
    history = fit(model, only_train(glyph_data, 80, poses=False), config(**fields))
    assert len(history) == 1 and {batch.shape[1:] for batch in batches} == {(3, 48, 48)}


@pytest.mark.parametrize("name", distortions.DISTORTIONS)
def test_every_distortion_trains(glyph_data, name):
    size = distortions.DISTORTIONS[name].canvas_size(32)
    _, (row,) = trained(only_train(glyph_data, 70, poses=False), distortion=name, image_size=size)
    assert math.isfinite(row["train_loss"])


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_named_is_used_unmeasured(precision):
    assert choose_precision(None, None, config(precision=precision)) == precision


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_networks_compute_in_the_chosen_precision(glyph_data, precision, dtype):
    seen = set()
    model = build_model(config(precision=precision))
    model.classifier.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    history = fit(model, only_train(glyph_data), config(precision=precision))
    assert seen == {dtype} and math.isfinite(history[0]["train_loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class Clock:
    """Time that passes in the classifier only, by its precision: seconds(dtype, number of its call)."""

    def __init__(self, monkeypatch, model, seconds):
        self.now, self.calls = 0.0, {torch.float32: 0, torch.bfloat16: 0}
        self.seconds = seconds
        model.classifier.register_forward_hook(self.tick)
        monkeypatch.setattr(training.time, "perf_counter", lambda: self.now)

    def tick(self, module, args, output):
        self.calls[output.dtype] += 1
        self.now += self.seconds(output.dtype == torch.bfloat16, self.calls[output.dtype])


def milliseconds(seconds):
    return lambda narrow, call: seconds(narrow, call) / 1000


@pytest.mark.parametrize(("seconds", "chosen"), [
    (lambda narrow, call: 1 if narrow else 5, "bf16"), (lambda narrow, call: 5 if narrow else 1, "fp32"),
    (lambda narrow, call: 1, "fp32"), (lambda narrow, call: 0.97 if narrow else 1, "fp32"),  # too little to change for
    (lambda narrow, call: (100 if call < 3 else 1) if narrow else 5, "bf16"),  # slow while it warms up
    (lambda narrow, call: (1 if call != 5 else 100) if narrow else 5, "bf16"),  # a hiccup
])
def test_auto_takes_the_faster_precision(glyph_data, monkeypatch, seconds, chosen):
    model = build_model(config())
    clock = Clock(monkeypatch, model, milliseconds(seconds))
    assert choose_precision(model, glyph_data.train.images[:8], config(precision="auto")) == chosen
    assert min(clock.calls.values()) >= 5


@pytest.mark.parametrize(("seconds", "rounds"), [(0.001, None), (1, None), (40, 2), (1000, 2)])
def test_measuring_takes_no_longer_than_a_person_waits(glyph_data, monkeypatch, seconds, rounds):
    model = build_model(config())
    clock = Clock(monkeypatch, model, lambda narrow, call: seconds if call == 1 or not narrow else seconds / 2)
    assert choose_precision(model, glyph_data.train.images[:8], config(precision="auto")) == "bf16"
    counts = set(clock.calls.values())
    assert len(counts) == 1 and counts != {1}  # of each precision as many, and one that is not the warm-up
    assert counts == {rounds} if rounds else clock.now <= steps.PATIENCE + 2 * seconds


@pytest.mark.parametrize("fields", [dict(), dict(model="compact")])  # compact: running statistics are traces too
@pytest.mark.parametrize("mode", [True, False])
def test_measuring_leaves_no_trace(glyph_data, mode, fields):
    model, untouched = build_model(config(**fields)).train(mode), build_model(config(**fields))
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    chosen = choose_precision(model, glyph_data.train.images[:8], config(precision="auto", **fields))
    assert chosen in ("fp32", "bf16")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters()) and model.training == mode
    assert same_weights(model, untouched)


# ---- how long it will take ------------------------------------------------------------------------------------------


def foretold(glyph_data, monkeypatch, capsys, seconds, epochs, **fields):
    """What is said of the time by a run of whose first two epochs each step takes `seconds(number of the step)`."""
    model, number = build_model(config()), itertools.count(1)
    now = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    def pass_time(module, args, output):
        now[0] += seconds(next(number))

    def stop(model, history):
        if len(history) == 2:
            raise KeyboardInterrupt

    model.classifier.register_forward_hook(pass_time)
    fit(model, only_train(glyph_data, 120), config(batch_size=4, epochs=epochs, **fields), on_epoch_end=stop)
    return re.findall(r"[^\r\n]*will take about[^\r\n]*", capsys.readouterr().out)


UNITS = dict(minutes=60, hours=3600)


@pytest.mark.parametrize("first", [1, 50])  # the first steps are slow: what is measured there must not count
@pytest.mark.parametrize(("seconds", "epochs"), [(0.1, 50), (1.0, 110), (60.0, 50)])
def test_a_long_training_is_foretold_in_words(glyph_data, monkeypatch, capsys, seconds, epochs, first):
    lines = foretold(glyph_data, monkeypatch, capsys, lambda step: seconds * (first if step <= 5 else 1), epochs)
    line, = lines  # told once in two epochs
    number, unit = re.search(r"([\d.]+) (minutes|hours)", line).groups()
    assert float(number) * UNITS[unit] == pytest.approx(seconds * 30 * epochs, rel=0.25)  # 30 steps an epoch
    assert f"{epochs} epochs" in line and "(cpu)" in line
    assert ("fewer epochs" in line and "GPU" in line) == (seconds * 30 * epochs > 3600)


def test_a_short_training_is_not_talked_about(glyph_data, monkeypatch, capsys):
    assert foretold(glyph_data, monkeypatch, capsys, lambda step: 0.03, 50) == []  # 45 s
    assert foretold(glyph_data, monkeypatch, capsys, lambda step: 100 if step <= 3 else 0.03, 50) == []

