"""Nothing lost: broken-off runs that go on to the very same result, damage that is noticed, files that cannot harm."""

import errno
import functools
import hashlib
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import fuzz_checkpoints as fuzz
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_cifar import checkpoints, training
from stn_cifar.checkpoints import CheckpointError, load_model, newest_checkpoint, read_checkpoint
from stn_cifar.config import PRESETS, Config
from stn_cifar.data import CIFAR_CLASSES, Data, Split, load_data
from stn_cifar.glyphs import CLASSES, make_glyphs
from stn_cifar.stn import build_model
from stn_cifar.training import NonFiniteLoss, fit

REPOSITORY = Path(__file__).parents[1]
EPOCHS = 4
STEPS = 3  # an epoch: 80 images in batches of 32, the last one ragged
COMMON = dict(device="cpu", precision="fp32", batch_size=32, epochs=EPOCHS)  # precision fixed: "auto" measures time
# or their twelve steps would take a minute
SMALLER = dict(strong=dict(width=0.1), taught=dict(width=0.5, localization_width=0.5))
EXPERIMENTS = {name: Config.preset(name, **COMMON, **SMALLER.get(name, {})) for name in PRESETS}
# what the presets may not use: state in the optimizer, a schedule, every guard rail, another family
EXPERIMENTS["guarded"] = Config.preset("tutorial", transform="similarity", momentum=0.9, weight_decay=5e-4, seed=3,
                                       schedule="linear", outside_weight=0.1, identity_weight=0.01,
                                       scale_weight=0.1, max_scale=1.01, **COMMON)
EXPERIMENTS["augmented"] = Config.preset("tutorial", seed=4, flip=True, shift=3, cutout=8, label_smoothing=0.1,
                                         warmup=0.6, weight_decay=5e-4, **COMMON)
TUTORIAL, GUARDED = EXPERIMENTS["tutorial"], EXPERIMENTS["guarded"]


class Killed(BaseException):
    """Ends a run like a kill does: no `except` of the program's catches it."""


# ---- data, runs, comparison -------------------------------------------------------------------------------------


@functools.cache
def small_data(name):
    """"glyphs", or images in CIFAR-10's shape: the real ones where they lie at hand."""
    if name == "glyphs":
        train, val, test = (Split(*make_glyphs(count, seed)) for seed, count in enumerate((80, 20, 30)))
        return Data(train, val, test, CLASSES, "glyphs")
    place = os.environ.get("STN_CIFAR_DATA") or REPOSITORY.parent / "shared" / "datasets"
    if (Path(place) / "cifar-10-batches-py").is_dir():
        images = load_data(Config(dataset="cifar10", data_root=str(place), device="cpu")).train
    else:
        generator = torch.Generator().manual_seed(0)
        images = Split(torch.randint(256, (500, 3, 32, 32), dtype=torch.uint8, generator=generator),
                       torch.randint(10, (500,), generator=generator))
    train, val, test = (Split(part.images.clone(), part.labels.clone())  # clones let the other 49,500 go
                        for part in (images[:80], images[80:100], images[100:500]))
    return Data(train, val, test, CIFAR_CLASSES, "CIFAR-10")


class Run:
    """One call of fit with a fresh model; what happened is in .model, .history, .seen and .content."""

    def __init__(self, folder, config=TUTORIAL, data="glyphs", on_epoch_end=None, on_step=lambda model, step: None):
        self.model, self.seen = build_model(config), []

        def before(module, inputs):
            if module.training:
                on_step(self.model, len(self.seen))

        def after(module, inputs, logits):  # logits show data order, distortion and dropout at once
            if module.training:
                self.seen.append(logits.detach().clone())

        self.model.classifier.register_forward_pre_hook(before)
        self.model.classifier.register_forward_hook(after)
        self.history = fit(self.model, small_data(data) if isinstance(data, str) else data, config, folder,
                           on_epoch_end=on_epoch_end)
        self.content = newest_checkpoint(folder) if folder else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(experiment, data): the run that was never interrupted. Trained once, its folder not to be written to."""
    @functools.cache
    def run(experiment="tutorial", data="glyphs"):
        folder = tmp_path_factory.mktemp("whole")
        result = Run(folder, EXPERIMENTS[experiment], data)
        result.folder = folder
        return result
    return run


@pytest.fixture
def kept(whole, tmp_path):
    """A folder of its own with the checkpoints of epochs 3 and 4 of the tutorial's run."""
    for path in whole().folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def differences(a, b):
    """Where two runs differ: checkpoint (weights, optimizer, history but for its seconds, config), model, history."""
    return (fuzz.differences(a.content, b.content, "checkpoint")
            + fuzz.differences(a.model.state_dict(), b.model.state_dict(), "model")
            + fuzz.differences(a.history, b.history, "history"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def seal(path, content):
    """A file at `path` with `content` in it whose header is in order."""
    path.write_bytes(checkpoints.MAGIC + len(content).to_bytes(8, "big") + hashlib.sha256(content).digest() + content)
    return path


def sealed(path, state, **how):
    """A file at `path` as save_checkpoint writes them, with any `state` in it."""
    content = io.BytesIO()
    torch.save(state, content, **how)
    return seal(path, content.getvalue())


# ---- the very same result ---------------------------------------------------------------------------------------


class HalfWritten(io.FileIO):
    """A file of which only the first half of what is written arrives; then `self.then()` is called."""

    def write(self, content):
        super().write(content[:len(content) // 2])
        self.then()


def break_writing(monkeypatch, then):
    """From now on checkpoints are written by half only; then `then` is called."""
    def half(path, mode):
        if "r" in mode:
            return open(path, mode)
        file = HalfWritten(path, "w")
        file.then = then
        return file
    monkeypatch.setattr(checkpoints, "open", half, raising=False)


def kill(*_, **__):
    raise Killed


def at_an_epochs_end(monkeypatch):
    return dict(on_epoch_end=lambda model, history: len(history) == 2 and kill())


def in_the_middle_of_an_epoch(monkeypatch):
    return dict(on_step=lambda model, step: step == 2 * STEPS + 1 and kill())


def in_the_third_save(patch):
    return dict(on_epoch_end=lambda model, history: len(history) == 2 and patch())


def while_pickling(monkeypatch):
    return in_the_third_save(lambda: monkeypatch.setattr(torch, "save", kill))


def while_writing(monkeypatch):
    return in_the_third_save(lambda: break_writing(monkeypatch, kill))


def while_syncing(monkeypatch):
    return in_the_third_save(lambda: monkeypatch.setattr(os, "fsync", kill))


def while_renaming(monkeypatch):
    return in_the_third_save(lambda: monkeypatch.setattr(Path, "replace", kill))


WAYS = (at_an_epochs_end, in_the_middle_of_an_epoch, while_pickling, while_writing, while_syncing, while_renaming)
# how a file is written has nothing to do with the recipe: for these, two ways and one data set will do
RECIPES = ("compact", "strong", "augmented", "taught")
BREAKS = [(way, experiment, data) for way in WAYS for experiment in EXPERIMENTS for data in ("glyphs", "CIFAR-10")
          if experiment not in RECIPES or (way in WAYS[:2] and data == "CIFAR-10")]


@pytest.mark.parametrize(("break_off", "experiment", "data"), BREAKS,
                         ids=[f"{way.__name__}-{experiment}-{data}" for way, experiment, data in BREAKS])
def test_broken_off_run_goes_on_to_the_very_same_result(break_off, experiment, data, whole, tmp_path, capsys):
    config = EXPERIMENTS[experiment]
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        Run(tmp_path, config, data, **break_off(monkeypatch))
    assert len(newest_checkpoint(tmp_path)["history"]) == 2
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left
    torch.rand(7)  # the process that goes on is another one, whose global random state is anywhere
    random_state = torch.get_rng_state()
    resumed = Run(tmp_path, config, data)
    assert f"resuming after epoch 2 of {EPOCHS}" in capsys.readouterr().out
    assert differences(resumed, whole(experiment, data)) == []
    # and not only in the end: the first step after it drew the same images, poses and dropout masks
    assert fuzz.differences(resumed.seen, whole(experiment, data).seen[2 * STEPS:]) == []
    assert torch.equal(torch.get_rng_state(), random_state)


def test_interrupted_again_and_again(whole, tmp_path):
    for epoch in range(1, EPOCHS):
        with pytest.raises(Killed):
            Run(tmp_path, on_epoch_end=kill)
        assert len(newest_checkpoint(tmp_path)["history"]) == epoch
    assert differences(Run(tmp_path), whole()) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_comparison_shows_one_changed_step(experiment, whole, tmp_path):
    """The negative control: one weight of thousands, moved by the least that a number can move, before one step."""
    def nudge(model, step):
        if step == 2 * STEPS + 1:
            with torch.no_grad():
                weight = next(model.classifier.parameters())[0, 0, 0]
                weight[0] = torch.nextafter(weight[0], torch.tensor(1e9))
    changed = differences(Run(tmp_path, EXPERIMENTS[experiment], on_step=nudge), whole(experiment))
    assert any(name.startswith("model/") for name in changed)
    assert any(name.startswith("checkpoint/model/") for name in changed)


@pytest.mark.parametrize("part", ["model", "momentum"])
def test_comparison_shows_one_changed_number_in_the_checkpoint(part, whole, tmp_path):
    with pytest.raises(Killed):
        Run(tmp_path, GUARDED, on_epoch_end=lambda model, history: len(history) == 2 and kill())
    state = read_checkpoint(tmp_path / "epoch-00002.pt")
    tensor = state["model"]["classifier.head.3.bias"] if part == "model" else next(
        iter(state["optimizer"]["state"].values()))["momentum_buffer"]
    tensor[(0,) * tensor.ndim] += 0.1
    sealed(tmp_path / "epoch-00002.pt", state)
    changed = differences(Run(tmp_path, GUARDED), whole("guarded"))
    assert {name.split("/")[0] for name in changed} == {"checkpoint", "model", "history"}


def test_optimizer_state_is_part_of_the_comparison(whole):
    """A comparison of nothing would always succeed: this is what was compared above."""
    content = whole("guarded").content
    buffers = [state["momentum_buffer"] for state in content["optimizer"]["state"].values()]
    assert len(buffers) == len(content["model"]) and all(buffer.any() for buffer in buffers)
    assert [row["epoch"] for row in content["history"]] == [1, 2, 3, 4]
    assert content["config"] == GUARDED.to_dict()
    assert len(whole("guarded").seen) == EPOCHS * STEPS


def test_distortion_goes_on_the_same(tmp_path):
    config = TUTORIAL.replace(distortion="rotation")
    unbroken = Run(tmp_path / "whole", config, "CIFAR-10")
    with pytest.raises(Killed):
        Run(tmp_path / "broken", config, "CIFAR-10", on_step=lambda model, step: step == STEPS + 2 and kill())
    assert differences(Run(tmp_path / "broken", config, "CIFAR-10"), unbroken) == []


@pytest.mark.parametrize("experiment", ["compact", "tutorial"])
def test_what_is_asked_of_the_model_after_an_epoch_does_not_change_the_result(experiment, whole, tmp_path):
    """Running statistics of normalization would move, had the model stayed in training mode."""
    def look(model, history):
        model(small_data("glyphs").test.images), model.transform(small_data("glyphs").test.images)
        assert not model.training
    assert differences(Run(tmp_path, EXPERIMENTS[experiment], on_epoch_end=look), whole(experiment)) == []


def test_running_statistics_are_kept_and_compared(whole):
    content = whole("compact").content["model"]
    means, counts = ([value for key, value in content.items() if key.endswith(end)]
                     for end in ("running_mean", "num_batches_tracked"))
    assert means and all(mean.any() for mean in means) and {int(count) for count in counts} == {EPOCHS * STEPS}


def test_checkpoints_do_not_change_the_result(whole):
    without = Run(None)
    assert fuzz.differences(without.model.state_dict(), whole().model.state_dict()) == []
    assert fuzz.differences(without.history, whole().history) == []


def test_raising_epochs_goes_on_to_the_result_of_the_longer_run(whole, tmp_path, capsys):
    Run(tmp_path, TUTORIAL.replace(epochs=2))
    longer = Run(tmp_path)
    assert "resuming after epoch 2 of 4" in capsys.readouterr().out
    assert differences(longer, whole()) == []


def test_finished_run_is_given_back_without_training(kept, whole, capsys):
    again = Run(kept)
    assert again.seen == [] and differences(again, whole()) == []
    assert "resuming after epoch 4 of 4" in capsys.readouterr().out


def test_precision_measured_at_the_start_stays_that_of_the_run(tmp_path, monkeypatch):
    """precision="auto" measures time: measured again after a break it might decide otherwise."""
    config = TUTORIAL.replace(precision="auto", epochs=2)
    monkeypatch.setattr(training, "choose_precision", lambda *_: "bf16")
    unbroken = Run(tmp_path / "whole", config)
    with pytest.raises(Killed):
        Run(tmp_path / "broken", config, on_epoch_end=kill)
    monkeypatch.setattr(training, "choose_precision", lambda *_: "fp32")
    assert differences(Run(tmp_path / "broken", config), unbroken) == []


# ---- another run, another length --------------------------------------------------------------------------------


def test_other_config_is_refused_naming_what_differs(kept):
    before = {path: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(ValueError, match="checkpoint_dir") as told:
        Run(kept, TUTORIAL.replace(seed=7, transform="similarity", learning_rate=0.02))
    for line in ("seed: 0 in the checkpoint, 7 now", "transform: 'affine' in the checkpoint, 'similarity' now",
                 "learning_rate: 0.01 in the checkpoint, 0.02 now"):
        assert line in str(told.value)
    assert "momentum" not in str(told.value) and "epochs" not in str(told.value)
    assert {path: path.read_bytes() for path in kept.iterdir()} == before


def test_every_field_but_the_free_ones_must_agree(kept):
    """A field that is added to Config is compared without anybody's doing."""
    state = read_checkpoint(kept / "epoch-00004.pt")
    optimizer, model = training.make_optimizer(build_model(TUTORIAL), TUTORIAL), build_model(TUTORIAL)
    for field in TUTORIAL.to_dict():
        if field not in checkpoints.FREE:
            sealed(kept / "epoch-00004.pt", {**state, "config": {**state["config"], field: "something else"}})
            with pytest.raises(ValueError, match=rf"^  {field}: 'something else' in the checkpoint|\n  {field}: "):
                checkpoints.resume(kept, model, optimizer, TUTORIAL)


def test_name_place_device_and_epochs_may_differ(kept, whole, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # device="auto" is the CPU here
    config = TUTORIAL.replace(name="mine", data_root="elsewhere", device="auto", epochs=5)
    assert len(Run(kept, config).history) == 5


def test_other_data_are_refused(kept):
    with pytest.raises(ValueError, match="dataset: 'glyphs' in the checkpoint, 'CIFAR-10' now"):
        Run(kept, data="CIFAR-10")
    glyphs = small_data("glyphs")
    with pytest.raises(ValueError, match="training_images: 80 in the checkpoint, 79 now"):
        Run(kept, data=Data(glyphs.train[:79], glyphs.val, glyphs.test, CLASSES, "glyphs"))


def test_dataset_auto_is_the_data_set_it_led_to(kept, whole):
    assert differences(Run(kept, TUTORIAL.replace(dataset="glyphs")), whole()) == []


def test_fewer_epochs_are_explained(kept):
    before = names(kept)
    with pytest.raises(ValueError, match=r"epochs: 2, but .* stands after 4 already"):
        Run(kept, TUTORIAL.replace(epochs=2))
    assert names(kept) == before


@pytest.mark.parametrize("epochs", [3, 5])
@pytest.mark.parametrize(("fields", "told"), [
    (dict(schedule="linear"), r"schedule='linear' with warmup=0\.0"),
    (dict(warmup=0.5), r"schedule='constant' with warmup=0\.5")])
def test_other_epochs_under_a_schedule_are_explained(fields, told, epochs, tmp_path):
    """Its learning rates were set for the whole run: the epochs so far are not those of a longer or shorter one."""
    config = TUTORIAL.replace(**fields)
    with pytest.raises(Killed):
        Run(tmp_path, config, on_epoch_end=kill)
    with pytest.raises(ValueError, match=rf"epochs: {epochs}, but .* planned for 4, and .*{told} .*name"):
        Run(tmp_path, config.replace(epochs=epochs))
    assert len(Run(tmp_path, config).history) == 4


# ---- damage -----------------------------------------------------------------------------------------------------


def newer_schema(path):
    sealed(path, {**read_checkpoint(path), "schema": checkpoints.SCHEMA + 1})


def half_a_schema(path):
    sealed(path, {key: value for key, value in read_checkpoint(path).items() if key not in ("history", "model")})


def flipped(place):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
    return flip


def directory(path):
    path.unlink()
    path.mkdir()


PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)
DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "0 bytes; empty"),
    "cut off in its header": (lambda path: path.write_bytes(path.read_bytes()[:20]), "20 bytes"),
    "header alone": (lambda path: path.write_bytes(path.read_bytes()[:checkpoints.HEADER]), "empty, cut off"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
    "too long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "longer than it was written"),
    "zeros, as a crash of the machine may leave": (
        lambda path: path.write_bytes(bytes(path.stat().st_size)), "not a checkpoint"),
    "bit of the magic": (flipped(0), "not a checkpoint"),
    "bit of the length": (flipped(15), "cut off, or longer"),
    "bit of the checksum": (flipped(16), "damaged"),
    "bit of the content": (flipped(-30_000), "damaged"),
    "last bit": (flipped(-1), "damaged"),
    "plain torch.save": (lambda path: torch.save(dict(model={}), path), "not a checkpoint"),
    "text": (lambda path: path.write_text("weights to follow\n" * 10), "not a checkpoint"),
    "PNG": (lambda path: path.write_bytes(PNG), "not a checkpoint"),
    "newer schema": (newer_schema, "written by another version \\(schema 2, this one reads 1\\)"),
    "parts missing": (half_a_schema, "holds no model, history"),
    "directory": (directory, "cannot be read|bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_passed_over(damage, kept, whole, capsys):
    spoil, reason = DAMAGES[damage]
    spoil(kept / "epoch-00004.pt")
    with pytest.raises(CheckpointError, match=rf"epoch-00004\.pt: .*({reason})"):
        read_checkpoint(kept / "epoch-00004.pt")
    with pytest.warns(UserWarning, match=rf"epoch-00004\.pt: .*({reason}).*; going back to epoch-00003\.pt") as told:
        state = newest_checkpoint(kept)
    assert len(told) == 1 and len(state["history"]) == 3
    if damage == "directory":  # nothing can be written in its place; the rest of the story is another test's
        return
    with pytest.warns(UserWarning, match="going back"):
        resumed = Run(kept)  # which writes epoch 4 anew
    assert "resuming after epoch 3 of 4" in capsys.readouterr().out
    assert differences(resumed, whole()) == []
    assert names(kept) == ["epoch-00003.pt", "epoch-00004.pt"]


@given(data=st.data())
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
def test_every_flipped_bit_and_every_cut_is_noticed(data, whole):
    intact = (whole().folder / "epoch-00004.pt").read_bytes()
    place = data.draw(st.integers(0, len(intact) - 1) | st.integers(0, checkpoints.HEADER - 1))
    bit = data.draw(st.none() | st.integers(0, 7))
    content = bytearray(intact)
    if bit is None:
        del content[place:]
    else:
        content[place] ^= 1 << bit
    path = whole().folder / "spoilt"
    path.write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match="spoilt"):
            read_checkpoint(path)
    finally:
        path.unlink()


def test_where_none_is_good_nothing_is_deleted(kept):
    (kept / "epoch-00003.pt").write_bytes(b"")
    flipped(-1)(kept / "epoch-00004.pt")
    before = {path: path.read_bytes() for path in kept.iterdir()}
    for use in (Run, load_model, newest_checkpoint):
        with pytest.raises(CheckpointError, match="nothing was deleted") as told:
            use(kept)
        for text in ("epoch-00003.pt: 0 bytes", "epoch-00004.pt: damaged", "name another checkpoint_dir"):
            assert text in str(told.value)
        assert {path: path.read_bytes() for path in kept.iterdir()} == before


def test_state_that_does_not_fit_the_model_is_explained(kept):
    """As a version with another architecture of the same name would leave it."""
    state = read_checkpoint(kept / "epoch-00004.pt")
    del state["model"]["classifier.head.3.bias"]
    path = sealed(kept / "epoch-00004.pt", state)
    with pytest.raises(CheckpointError, match="does not fit this version"):
        Run(kept)
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_model(path)


# ---- the folder -------------------------------------------------------------------------------------------------


def test_last_two_are_kept_and_nothing_else_is_left(tmp_path):
    seen = []
    Run(tmp_path, on_epoch_end=lambda model, history: seen.append(names(tmp_path)))
    assert seen == [["epoch-00001.pt"], ["epoch-00001.pt", "epoch-00002.pt"], ["epoch-00002.pt", "epoch-00003.pt"],
                    ["epoch-00003.pt", "epoch-00004.pt"]]


def test_files_of_other_names_are_left_alone(tmp_path):
    others = ["best.pt", "epoch-00001-copy.pt", "epoch-best.pt", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    Run(tmp_path)
    assert names(tmp_path) == sorted([*others, "epoch-00003.pt", "epoch-00004.pt"])


def test_later_damaged_checkpoints_do_not_push_out_good_ones(kept):
    for name in ("epoch-00098.pt", "epoch-00099.pt"):
        (kept / name).write_bytes(b"from somewhere")
    with pytest.warns(UserWarning, match="going back to epoch-00004"):
        fit(build_model(TUTORIAL), small_data("glyphs"), TUTORIAL.replace(epochs=6), kept)
    assert names(kept) == ["epoch-00005.pt", "epoch-00006.pt", "epoch-00098.pt", "epoch-00099.pt"]


def test_newest_is_the_highest_number(kept):
    (kept / "epoch-00004.pt").rename(kept / "epoch-100000.pt")
    (kept / "epoch-00003.pt").rename(kept / "epoch-99999.pt")
    assert len(newest_checkpoint(kept)["history"]) == 4


def test_old_temporaries_of_killed_processes_go_and_fresh_ones_stay(tmp_path):
    """A fresh one may be another process's, writing just now."""
    old, fresh = tmp_path / ".epoch-00007.pt.1.tmp", tmp_path / ".epoch-00007.pt.2.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * checkpoints.STALE
    os.utime(old, (long_ago, long_ago))
    Run(tmp_path)
    assert names(tmp_path) == [fresh.name, "epoch-00003.pt", "epoch-00004.pt"]


def fail_as_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_told_once_and_training_goes_on(tmp_path, whole):
    """Full at epochs 2 and 3, room again at 4."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.warns(UserWarning, match="checkpoint_dir") as told:
        def change(model, history):
            assert names(tmp_path) == [f"epoch-{epoch:05}.pt" for epoch in ([1], [1], [1], [1, 4])[len(history) - 1]]
            if len(history) == 1:
                break_writing(monkeypatch, fail_as_full)
            if len(history) == 3:
                monkeypatch.undo()
        run = Run(tmp_path, on_epoch_end=change)
    assert len(told) == 1
    assert f"cannot write to {tmp_path} (No space left on device)" in str(told[0].message)
    assert Path(told[0].filename) == Path(__file__)  # it points to the caller's line, not into the library
    assert differences(run, whole()) == []


def test_new_trouble_after_a_good_save_is_told_again(tmp_path):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.warns(UserWarning) as told:
        def change(model, history):
            (monkeypatch.undo if len(history) == 2 else lambda: break_writing(monkeypatch, fail_as_full))()
        Run(tmp_path, on_epoch_end=change)  # epochs 2 and 4 cannot be written
    assert len(told) == 2


def test_folder_that_vanishes_and_comes_back(tmp_path, whole):
    """A drive that unmounts: nothing is written in its place meanwhile, which would be in its way later."""
    folder, away = tmp_path / "drive", tmp_path / "away"

    def change(model, history):
        if len(history) == 1:
            folder.rename(away)
        elif len(history) == 3:
            assert not folder.exists()
            away.rename(folder)
    with pytest.warns(UserWarning, match=r"cannot write to .*drive \(No such file or directory\)") as told:
        run = Run(folder, on_epoch_end=change)
    assert len(told) == 1 and names(folder) == ["epoch-00001.pt", "epoch-00004.pt"]
    assert differences(run, whole()) == []


def test_folder_that_becomes_unwritable_for_good(tmp_path, whole, capsys):
    folder = tmp_path / "folder"

    def change(model, history):
        if len(history) == 1:
            folder.rename(tmp_path / "away")
            folder.write_text("a file in its place")
    with pytest.warns(UserWarning, match="cannot write to") as told:
        history = fit(build_model(TUTORIAL), small_data("glyphs"), TUTORIAL, folder, on_epoch_end=change)
    assert len(told) == 1
    assert fuzz.differences(history, whole().history) == []


def test_folder_that_cannot_be_made_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(CheckpointError, match=f"checkpoint_dir: {re.escape(str(folder))} cannot be made"):
            Run(folder, on_step=kill)


def test_folder_is_made_with_its_parents_and_may_be_a_string(tmp_path):
    history = fit(build_model(TUTORIAL), small_data("glyphs"), TUTORIAL.replace(epochs=1), str(tmp_path / "a" / "b"))
    assert len(history) == 1 and names(tmp_path / "a" / "b") == ["epoch-00001.pt"]


# ---- stops ------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_middle_of_an_epoch_keeps_the_complete_ones(tmp_path, whole, capsys):
    def stop(model, step):
        if step == 2 * STEPS + 1:
            raise KeyboardInterrupt
    stopped = Run(tmp_path, on_step=stop)
    assert len(stopped.history) == len(stopped.content["history"]) == 2
    assert f"stopped; 2 of 4 epochs are complete and kept in {tmp_path}" in capsys.readouterr().out
    assert differences(Run(tmp_path), whole()) == []


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "torch.save"])
def test_ctrl_c_in_the_middle_of_a_save_keeps_that_epoch_too(where, tmp_path, whole, capsys):
    with pytest.MonkeyPatch.context() as monkeypatch:
        def stop(*_, **__):
            monkeypatch.undo()
            raise KeyboardInterrupt
        def break_the_second(model, history):
            if len(history) == 1:
                monkeypatch.setattr(where, stop)
        stopped = Run(tmp_path, on_epoch_end=break_the_second)
    assert len(stopped.history) == len(stopped.content["history"]) == 2
    assert "2 of 4 epochs are complete and kept" in capsys.readouterr().out
    assert names(tmp_path) == ["epoch-00001.pt", "epoch-00002.pt"]
    assert differences(Run(tmp_path), whole()) == []


def test_ctrl_c_without_a_place_for_checkpoints_promises_nothing(capsys):
    def stop(model, history):
        raise KeyboardInterrupt
    assert len(Run(None, on_epoch_end=stop).history) == 1
    assert "1 of 4 epochs are complete\n" in capsys.readouterr().out


CHILD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import fuzz_checkpoints as fuzz
from stn_cifar import checkpoints
import torch

folder, job = sys.argv[1:]
# whatever this test run was started with: nohup and & leave Ctrl-C ignored
signal.signal(signal.SIGINT, signal.SIG_IGN if job == "ignore Ctrl-C" else signal.default_int_handler)
torch.set_num_threads({{threads}})

def report(epoch):
    print("epoch", epoch, flush=True)
    if job == "stall in the third save" and epoch == 2:
        from test_checkpoints import HalfWritten
        HalfWritten.then = lambda self: (print("half", flush=True), time.sleep(60))
        checkpoints.open = lambda path, mode: HalfWritten(path, "w")

history = fuzz.train(folder, fuzz.tiny_data(), epochs=5_000, report=report)
print("returned", len(history), flush=True)
"""


class Child:
    """A real process that trains into `folder`; used in a `with`, after which it is over."""

    def __init__(self, folder, job):
        code = CHILD.replace("{threads}", str(torch.get_num_threads()))  # their number may change the last bit
        self.process = subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(folder), job],
                                        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        self.limit = threading.Timer(60, self.process.kill)  # a test that waits for what never comes should fail

    def __enter__(self):
        self.limit.start()
        return self

    def __exit__(self, *_):
        self.limit.cancel()
        self.process.kill()
        self.process.communicate()

    def says(self, pattern):
        """The match of `pattern` in the next line that has one; fails where none comes."""
        for line in self.process.stdout:
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"the process ended without saying {pattern!r}")


def assert_on_its_way(folder, epochs):
    """The newest checkpoint stands after `epochs`, and is that of a run nobody disturbed."""
    state = newest_checkpoint(folder)
    assert len(state["history"]) == epochs
    fuzz.train(folder / "undisturbed", fuzz.tiny_data(), epochs=epochs)
    expected = newest_checkpoint(folder / "undisturbed")
    assert fuzz.differences(expected, state, skip=("seconds", "epochs")) == []  # the children were to train longer


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_real_kill_in_the_middle_of_a_save(tmp_path):
    with Child(tmp_path, "stall in the third save") as child:
        child.says("half")
        os.kill(child.process.pid, signal.SIGKILL)
        assert child.process.wait(60) == -signal.SIGKILL
    assert_on_its_way(tmp_path, 2)  # without a warning: what was half-written never had a checkpoint's name
    fuzz.train(tmp_path, fuzz.tiny_data(), epochs=3)  # and it is in nobody's way
    assert_on_its_way(tmp_path, 3)


@pytest.mark.skipif(os.name != "posix", reason="Windows sends no signals")
@pytest.mark.parametrize("stop, job", [(signal.SIGINT, "heed Ctrl-C"), (signal.SIGTERM, "ignore Ctrl-C")],
                         ids=["SIGINT", "SIGTERM"])
def test_real_signal_saves_and_returns(stop, job, tmp_path):
    """SIGTERM in a program started by nohup or &, which cannot hear Ctrl-C: it must be heard all the same."""
    with Child(tmp_path, job) as child:
        child.says("epoch 3")
        child.process.send_signal(stop)
        told = int(child.says(r"stopped; (\d+) of 5000 epochs are complete and kept in")[1])
        returned = int(child.says(r"returned (\d+)")[1])
        assert child.process.wait(60) == 0
    assert told == returned >= 3
    assert_on_its_way(tmp_path, returned)


def test_sigterm_means_afterwards_what_it_meant_before(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    Run(tmp_path, on_step=lambda model, step: None)
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_in_a_thread(tmp_path):
    """Where Python allows no signal handlers."""
    runs = []
    thread = threading.Thread(target=lambda: runs.append(Run(tmp_path)))
    thread.start()
    thread.join()
    assert len(runs[0].history) == EPOCHS


def test_nan_keeps_the_last_good_checkpoint_and_says_what_to_try(tmp_path):
    def overflow(model, history):
        if len(history) == 2:
            with torch.no_grad():
                model.classifier.features[0].weight.mul_(1e38)
    with pytest.raises(NonFiniteLoss, match=r"in epoch 3, step 1 of 3; try a lower learning_rate \(now 0\.01\)"):
        Run(tmp_path, on_epoch_end=overflow)
    state = newest_checkpoint(tmp_path)
    assert len(state["history"]) == 2
    assert all(weight.isfinite().all() for weight in state["model"].values())


def test_weights_that_the_last_step_spoilt_are_not_kept(tmp_path):
    """The loss of that step was taken before it, and is finite."""
    def spoil_the_last(model, step):
        if step == 2 * STEPS - 1:
            model.classifier.head[-1].bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss, match="in epoch 2, step 3 of 3"):
        Run(tmp_path, on_step=spoil_the_last)
    assert len(newest_checkpoint(tmp_path)["history"]) == 1


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8000000000000 bytes."),  # Windows
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_names_the_batch_size(error, tmp_path, whole):
    def run_out(model, step):
        if step == STEPS:
            raise error
    with pytest.raises(MemoryError, match=r"batch_size: 32 does not fit .* cpu; .* such as 16") as told:
        Run(tmp_path, on_step=run_out)
    assert told.value.__cause__ is error
    assert differences(Run(tmp_path), whole()) == []  # what was complete is there


def test_out_of_memory_when_precision_is_measured(monkeypatch):
    """The first thing that a batch size is tried on."""
    def run_out(*_):
        raise OUT_OF_MEMORY[0]
    monkeypatch.setattr(training, "choose_precision", run_out)
    with pytest.raises(MemoryError, match="batch_size: 32 does not fit"):
        Run(None, TUTORIAL.replace(precision="auto"))


def test_memory_is_free_for_the_next_try():
    """A notebook keeps the last error, whose frames would keep the batch that was too large."""
    def run_out(model, step):
        raise OUT_OF_MEMORY[0]
    with pytest.raises(MemoryError) as told:
        Run(None, on_step=run_out)
    frames, error = [], told.value.__cause__.__traceback__
    while error:
        frames.append(error.tb_frame)
        error = error.tb_next
    epoch = next(frame for frame in frames if frame.f_code.co_name == "train_epoch")
    assert not any(isinstance(value, torch.Tensor) for value in epoch.f_locals.values())


def test_other_errors_are_not_taken_for_want_of_memory():
    def fail(model, step):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Run(None, on_step=fail)

    def fail_in_callback(model, history):
        raise MemoryError("no room for the figure")
    with pytest.raises(MemoryError, match="no room for the figure"):
        Run(None, on_epoch_end=fail_in_callback)


# ---- the trained model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_load_model_is_the_trained_model(experiment, whole):
    run = whole(experiment)
    images = small_data("glyphs").test.images
    random_state = torch.get_rng_state()
    with torch.no_grad():
        expected = run.model.eval()(images)
        for path in (run.folder, run.folder / "epoch-00004.pt", str(run.folder)):
            model = load_model(path, device="cpu")
            assert torch.equal(model(images), expected)
            assert not model.training and model.config == EXPERIMENTS[experiment]
    assert torch.equal(torch.get_rng_state(), random_state)


def test_load_model_takes_the_file_it_is_given(whole):
    older = load_model(whole().folder / "epoch-00003.pt", device="cpu").state_dict()
    assert fuzz.differences(older, read_checkpoint(whole().folder / "epoch-00003.pt")["model"]) == []
    assert fuzz.differences(older, whole().model.state_dict()) != []


def test_load_model_goes_back_where_the_newest_is_damaged(kept):
    flipped(-1)(kept / "epoch-00004.pt")
    with pytest.warns(UserWarning, match="epoch-00004.pt: damaged"):
        model = load_model(kept, device="cpu")
    assert fuzz.differences(model.state_dict(), read_checkpoint(kept / "epoch-00003.pt")["model"]) == []


def test_load_model_says_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: cannot be read \(No such file"):
        load_model(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(epoch-\*\.pt\)"):
        load_model(tmp_path)
    (tmp_path / "model.pt").write_bytes(PNG)
    with pytest.raises(CheckpointError, match=r"model\.pt: not a checkpoint"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("change, named", [
    (dict(learning_rate=-1.0), "learning_rate"), (dict(transform="cubist"), "transform"),
    (dict(batch_size="many"), "batch_size"), (dict(num_classes=None), "num_classes"), (dict(colour="red"), "colour"),
    (dict(num_classes=11), "weights"), (dict(stn=False), "weights")])
def test_config_with_bad_values_is_refused(change, named, kept):
    state = read_checkpoint(kept / "epoch-00004.pt")
    path = sealed(kept / "bad.pt", {**state, "config": {**state["config"], **change}})
    with pytest.raises(CheckpointError, match=rf"bad\.pt: does not fit .*{named}"):
        load_model(path)


# ---- files made to harm -----------------------------------------------------------------------------------------


class Payload:
    """Unpickled by a reader that trusts it, it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'echo harm > "{self.marker}"',)


def as_archive(payload):
    return saved(dict(schema=checkpoints.SCHEMA, config={}, model={}, optimizer={}, history=[], more=payload))


def as_old_format(payload):
    return saved(dict(schema=checkpoints.SCHEMA, model=payload), _use_new_zipfile_serialization=False)


def as_bare_pickle(payload):
    return pickle.dumps(payload)


def as_tar(payload):
    """torch's oldest format."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            member, data = tarfile.TarInfo(name), pickle.dumps(payload)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def as_tar_and_archive(payload):
    """Python finds an archive at a file's end, torch looks for one at its start."""
    return as_tar(payload) + saved(dict(schema=checkpoints.SCHEMA))


def saved(state, **how):
    content = io.BytesIO()
    torch.save(state, content, **how)
    return content.getvalue()


@pytest.mark.parametrize("packed", [as_archive, as_old_format, as_bare_pickle, as_tar, as_tar_and_archive],
                         ids=lambda function: function.__name__)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(packed, kept):
    """With the right magic and checksum: whoever makes such a file can compute them."""
    marker = kept / "harmed"
    path = seal(kept / "epoch-00099.pt", packed(Payload(marker)))
    for use in (read_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=r"epoch-00099\.pt: not (readable|an archive)"):
            use(path)
    with pytest.warns(UserWarning, match="epoch-00099"):
        Run(kept)
    assert not marker.exists()


@pytest.mark.parametrize("packed", [as_old_format, as_bare_pickle, as_tar, as_tar_and_archive],
                         ids=lambda function: function.__name__)
def test_old_formats_do_not_even_reach_torch(packed, kept, monkeypatch):
    """Before torch 2.6 the reader of one of them ran code in spite of weights_only (CVE-2025-32434)."""
    path = seal(kept / "old.pt", packed(Payload(kept / "harmed")))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("asked torch"))
    with pytest.raises(CheckpointError, match="not an archive"):
        read_checkpoint(path)


def test_payload_would_have_run(tmp_path):
    """The control: unpickled with trust, it does."""
    content = as_archive(Payload(tmp_path / "harmed"))
    torch.load(io.BytesIO(content), weights_only=False)
    assert (tmp_path / "harmed").exists()


def peak_memory(path):
    """Bytes that reading `path`, which must be refused, takes at most."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as told:
            read_checkpoint(path)
        return tracemalloc.get_traced_memory()[1], str(told.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size, start, reason", [
    (3 * 2**30, checkpoints.MAGIC + (3 * 2**30 - checkpoints.HEADER).to_bytes(8, "big"), "3221225472 bytes"),
    (2**30, b"", "not a checkpoint"), (2**30, checkpoints.MAGIC + (1000).to_bytes(8, "big"), "longer than")])
def test_oversized_file_is_refused_before_memory_is_taken(size, start, reason, tmp_path):
    with open(tmp_path / "large.pt", "wb") as file:
        file.write(start)
        file.truncate(size)  # sparse: takes no room on the disk
    peak, told = peak_memory(tmp_path / "large.pt")
    assert peak < 2**20 and reason in told


def test_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    peak, told = peak_memory(seal(tmp_path / "bomb.pt", bomb.getvalue()))
    assert peak < 2**20 and "unpack to more" in told


def test_archive_whose_entries_overlap_is_refused(tmp_path):
    """Each as large as the file, so none too large by itself."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(2**16))
        for number in range(100):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            first = archive.filelist[0]
            again.file_size = again.compress_size = first.file_size
            again.CRC, again.header_offset = first.CRC, first.header_offset
            archive.filelist.append(again)
        archive._didModify = True
    _, told = peak_memory(seal(tmp_path / "bomb.pt", bomb.getvalue()))
    assert "unpack to more" in told


def test_config_that_asks_for_a_huge_model_is_refused_before_memory_is_taken(kept, monkeypatch):
    """Weights to match, of one number that poses as many billions, do not help it."""
    state = read_checkpoint(kept / "epoch-00004.pt")
    state["config"]["num_classes"] = 10**10
    path = sealed(kept / "huge.pt", state)
    state["model"]["classifier.head.3.weight"] = torch.zeros(()).expand(10**10, 50)
    state["model"]["classifier.head.3.bias"] = torch.zeros(()).expand(10**10)
    posing = sealed(kept / "posing.pt", state)
    monkeypatch.setattr(checkpoints, "build_model", lambda config: pytest.fail("built it"))
    for file in (path, posing):
        assert file.stat().st_size < 2**20
        with pytest.raises(CheckpointError, match="its weights are not those of its config"):
            load_model(file)


# ---- kills and damages at random --------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzz script forks")
def test_fuzz_in_short(tmp_path):
    out = tmp_path / "fuzz.json"
    script = [sys.executable, "-W", "error", "tests/fuzz_checkpoints.py", "--kills", "5", "--damages", "20"]
    done = subprocess.run([*script, "--out", str(out)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"outcome": "passed"' in out.read_text() and '"kills": 5' in out.read_text()
