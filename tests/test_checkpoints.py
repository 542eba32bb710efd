"""Nothing lost: runs that go on to the very same result, damage noticed, files that cannot harm."""

import copy
import errno
import functools
import io
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import fuzz_checkpoints as fuzz
import numpy as np
import pytest
import torch
from fuzz_checkpoints import differences, forge
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stn_cifar import files, stn
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.data.glyphs import CLASSES, make_glyphs
from stn_cifar.presets import PRESETS
from stn_cifar.spatial_transformer import SpatialTransformer
from stn_cifar.stn import STNClassifier, build_model
from stn_cifar.training import checkpoints
from stn_cifar.training.checkpoints import (
    CheckpointError,
    claim,
    load_model,
    newest_checkpoint,
    read_checkpoint,
    resume,
    save_checkpoint,
)
from stn_cifar.training.loop import NonFiniteLoss, fit
from stn_cifar.training.optim import make_optimizer

REPOSITORY = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no fork, signals, permissions")
CONFIG = Config.preset("tutorial", device="cpu", precision="fp32", batch_size=32, epochs=4,
                       momentum=0.9)


class Killed(BaseException):
    """Ends a run like a kill does: no `except` of the program's catches it."""


def kill(*_, **__):
    raise Killed


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a small run to save and resume -------------------------------------------------------------


class Small(nn.Module):
    """A stand-in of all kinds of tensors: channels last, matrix, vector, statistics, a count."""

    input_shape, num_classes = (3, 8, 8), 4

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
                                        nn.Linear(144, 4))
        self.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            [dict(params=list(self.layers[0].parameters()), lr=0.1, initial_lr=0.1),
             dict(params=list(self.layers[1:].parameters()), lr=0.2, initial_lr=0.2)],
            momentum=0.9, nesterov=True, fused=True)

    def step(self, epoch):
        images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(epoch))
        self.optimizer.zero_grad()
        self.layers(images.to(memory_format=torch.channels_last)).square().mean().backward()
        self.optimizer.step()

    def state(self):
        return copy.deepcopy((self.state_dict(), self.optimizer.state_dict()))


MORE = dict(dataset="glyphs", training_images=80, classes=["a", "b", "c", "d"], precision="fp32",
            scaler={})


def small_run(folder, epochs=4, config=CONFIG, model=None, since=0):
    """A Small trained and saved for some epochs, in a folder that is made where it is missing."""
    model = model or Small()
    Path(folder).mkdir(exist_ok=True)
    for epoch in range(since + 1, epochs + 1):
        model.step(epoch)
        history = [dict(epoch=n, train_loss=1 / n, precision="fp32") for n in range(1, epoch + 1)]
        path = save_checkpoint(folder, model, model.optimizer, history, config, **MORE)
        assert path == Path(folder) / f"epoch-{epoch:05}.pt"
    return model


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    small_run(folder)
    return folder


@pytest.fixture
def kept(small_folder, tmp_path):
    """A folder of its own with the checkpoints of epochs 3 and 4 of a Small."""
    for name, content in contents(small_folder).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def resume_small(folder, config=CONFIG, model=None, **same):
    model = model or Small(seed=1)
    return resume(folder, model, model.optimizer, config, **same)


def test_resumed_is_unbroken_bit_for_bit(tmp_path):
    whole = small_run(tmp_path / "whole", 4)
    small_run(tmp_path / "broken", 2)
    model = Small(seed=1)
    content = resume_small(tmp_path / "broken", model=model)
    assert len(content["history"]) == 2 and content["path"].name == "epoch-00002.pt"
    small_run(tmp_path / "broken", 4, model=model, since=2)
    assert differences(model.state(), whole.state()) == []
    assert differences(newest_checkpoint(tmp_path / "broken"),
                       newest_checkpoint(tmp_path / "whole")) == []


@pytest.mark.parametrize("part", ["nothing", "model", "momentum"])
def test_comparison_shows_the_least_change(part, kept):
    """The negative control: one number of hundreds, moved by the least that it can move."""
    content = read_checkpoint(kept / "epoch-00004.pt")
    tensor = dict(nothing=torch.zeros(1), model=content["model"]["layers.3.bias"],
                  momentum=content["optimizer"]["state"][1]["momentum_buffer"])[part]
    tensor[0] = torch.nextafter(tensor[0], torch.tensor(1e9))
    forge(kept / "epoch-00004.pt", content)
    resumed, unbroken = Small(seed=1), Small()
    resume_small(kept, model=resumed)
    for epoch in range(1, 6):
        unbroken.step(epoch)
    resumed.step(5)
    assert (differences(resumed.state(), unbroken.state()) == []) == (part == "nothing")


def test_momentum_takes_the_memory_format_of_its_parameter(kept):
    """Fused SGD goes through both as they lie in memory."""
    content = read_checkpoint(kept / "epoch-00004.pt")
    expected = content["optimizer"]["state"][0]["momentum_buffer"]
    assert not expected.is_contiguous()
    content["optimizer"]["state"][0]["momentum_buffer"] = expected.contiguous()
    forge(kept / "epoch-00004.pt", content)
    model = Small(seed=1)
    resume_small(kept, model=model)
    weight = model.layers[0].weight
    buffer = model.optimizer.state[weight]["momentum_buffer"]
    assert buffer.stride() == weight.stride() and torch.equal(buffer, expected)


def test_learning_rates_and_kernels_are_those_of_this_run(kept):
    """They follow from config and device, which may be another one now."""
    content = read_checkpoint(kept / "epoch-00004.pt")
    for group in content["optimizer"]["param_groups"]:
        group.update(lr=1e9, fused=None, params=[])
    forge(kept / "epoch-00004.pt", content)
    model = Small(seed=1)
    resume_small(kept, model=model)
    assert [(group["lr"], group["fused"]) for group in model.optimizer.param_groups] == [
        (0.1, True), (0.2, True)]


def test_without_momentum(tmp_path):
    model = Small()
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    small_run(tmp_path, 2, model=model)
    again = Small(seed=1)
    again.optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    resume_small(tmp_path, model=again)
    assert differences(again.state(), model.state()) == []


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [dict(), dict(mmap=True), dict(map_location="meta")])
def test_torch_load_reads_it(how, kept):
    content = torch.load(kept / "epoch-00004.pt", weights_only=True, **how)
    if how != dict(map_location="meta"):
        assert differences(content, read_checkpoint(kept / "epoch-00004.pt")) == []
    assert set(content) == {"schema", "config", "model", "optimizer", "history", "input_shape",
                            "num_classes", "threads", *MORE}
    model = Small(seed=1)
    if not how:
        model.load_state_dict(content["model"])
        model.optimizer.load_state_dict(content["optimizer"])


def test_content_is_what_was_given(kept):
    content = read_checkpoint(kept / "epoch-00004.pt")
    assert content["schema"] == 2 and content["config"] == CONFIG.to_dict()
    assert (content["input_shape"], content["num_classes"]) == ([3, 8, 8], 4)
    assert content["threads"] == torch.get_num_threads()
    assert {key: content[key] for key in MORE} == MORE
    assert [row["epoch"] for row in content["history"]] == [1, 2, 3, 4]


def test_tied_and_sliced_weights(tmp_path):
    """Tensors that share memory, and parts of larger ones."""
    model = Small()
    model.tied = model.layers[3].weight
    model.register_buffer("part", torch.arange(12.0).view(3, 4)[:, 1])
    small_run(tmp_path, 1, model=model)
    again = Small(seed=1)
    again.tied = again.layers[3].weight
    again.register_buffer("part", torch.zeros(3))
    resume_small(tmp_path, model=again)
    assert differences(again.state(), model.state()) == []


def test_version_before_the_redesign_is_named(kept):
    (kept / "epoch-00004.pt").write_bytes(b"STNCIFAR" + bytes(10_000))
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this program \(since 0.2\)"):
        read_checkpoint(kept / "epoch-00004.pt")


# ---- another run, another length ----------------------------------------------------------------


def refused(folder, match, config=CONFIG, error=CheckpointError, **same):
    """resume raises `error`; model, optimizer and folder are as they were."""
    model, before = Small(seed=1), contents(folder)
    model.step(1)
    state = model.state()
    with pytest.raises(error, match=match) as told:
        resume_small(folder, config, model, **same)
    assert differences(model.state(), state) == []
    assert contents(folder) == before
    return str(told.value)


def test_other_config_is_refused_naming_what_differs(kept):
    other = CONFIG.replace(seed=7, transform="similarity", learning_rate=0.02)
    told = refused(kept, "checkpoint_dir: .* holds another run", other, ValueError)
    for line in ("seed: 0 in the checkpoint, 7 now", "learning_rate: 0.01 in the checkpoint, 0.02 ",
                 "transform: 'affine' in the checkpoint, 'similarity' now"):
        assert line in told
    assert "momentum:" not in told and "epochs:" not in told


def test_every_field_but_the_free_ones_must_agree(kept):
    """A field that is added to Config is compared without anybody's doing."""
    content, model = read_checkpoint(kept / "epoch-00004.pt"), Small()
    for field in CONFIG.to_dict().keys() - {"name", "data_root", "device", "epochs"}:
        forge(kept / "epoch-00004.pt",
              content | dict(config=content["config"] | {field: "something else"}))
        with pytest.raises(ValueError, match=rf"\n  {field}: 'something else' in the checkpoint, "):
            resume_small(kept, model=model)


def test_name_place_and_longer_training_may_differ(kept):
    config = CONFIG.replace(name="mine", data_root="elsewhere", device="auto", epochs=5)
    assert len(resume_small(kept, config)["history"]) == 4


def test_field_that_the_checkpoint_does_not_know_has_its_default(kept):
    content = read_checkpoint(kept / "epoch-00004.pt")
    del content["config"]["label_smoothing"]
    forge(kept / "epoch-00004.pt", content)
    assert resume_small(kept) is not None
    refused(kept, "label_smoothing: 0.0 in", CONFIG.replace(label_smoothing=0.1), ValueError)


def test_field_of_a_newer_version_is_refused(kept):
    content = read_checkpoint(kept / "epoch-00004.pt")
    content["config"]["attention"] = False
    forge(kept / "epoch-00004.pt", content)
    refused(kept, "by a newer version; its config has attention, unknown here")
    with pytest.raises(CheckpointError, match="attention, unknown here"):
        load_model(kept)


def test_other_data_are_refused(kept):
    assert resume_small(kept, dataset="glyphs", training_images=80, classes=["a", "b", "c", "d"],
                        precision="fp32") is not None
    told = refused(kept, "holds another run", CONFIG, ValueError, dataset="CIFAR-10",
                   training_images=79, classes=["a"], precision="bf16")
    for line in ("dataset: 'glyphs' in the checkpoint, 'CIFAR-10' now",
                 "training_images: 80 in the checkpoint, 79 now", "precision: 'fp32' in",
                 "classes: ['a', 'b', 'c', 'd'] in the checkpoint, ['a'] now"):
        assert line in told
    assert resume_small(kept, colour="red") is not None  # what an older version did not keep


def test_dataset_auto_is_the_data_set_it_led_to(kept):
    assert resume_small(kept, CONFIG.replace(dataset="glyphs"), dataset="glyphs") is not None


def test_fewer_epochs_are_explained(kept):
    refused(kept, r"epochs: 2, but .* stands after 4 already", CONFIG.replace(epochs=2), ValueError)


@pytest.mark.parametrize("epochs", [4, 6])
@pytest.mark.parametrize("fields", [
    dict(schedule="linear"), dict(warmup=0.5),
    dict(pose_bins=36, pose_weight=1.0, teacher_forcing=0.5, transform="rotation",
         distortion="rotation")], ids=lambda fields: " ".join(fields))
def test_epochs_must_agree_where_something_goes_by_them(fields, epochs, tmp_path):
    """Learning rates were set for the whole run: a longer one has had others so far."""
    config = CONFIG.replace(epochs=5, **fields)
    small_run(tmp_path, 2, config)
    refused(tmp_path, rf"go by them\)\n  epochs: 5 in the checkpoint, {epochs} now",
            config.replace(epochs=epochs), ValueError)
    assert resume_small(tmp_path, config) is not None


def test_other_number_of_threads_is_told(kept):
    content = read_checkpoint(kept / "epoch-00004.pt")
    forge(kept / "epoch-00004.pt", content | dict(threads=torch.get_num_threads() + 3))
    with pytest.warns(UserWarning, match=r"with \d+ threads, goes on with .*last bits") as told:
        resume_small(kept)
    assert len(told) == 1


# ---- damage -------------------------------------------------------------------------------------


def forged(**changes):
    return lambda path: forge(path, read_checkpoint(path) | changes)


def without(*keys):
    def forge_without(path):
        content = read_checkpoint(path)
        forge(path, {key: value for key, value in content.items() if key not in keys})
    return forge_without


def spoilt(change):
    """change(bytearray of the file) in place, or the bytes that it returns."""
    def spoil(path):
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content) or content)
    return spoil


def flip(place):
    return spoilt(lambda content: content.__setitem__(place, content[place] ^ 1))


def directory(path):
    path.unlink()
    path.mkdir()


def older_under_a_higher_number(path):
    path.write_bytes((path.parent / "epoch-00003.pt").read_bytes())


PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)
DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "cut off"),
    "cut off early": (lambda path: path.write_bytes(path.read_bytes()[:20]), "File is not a zip"),
    "cut off": (spoilt(lambda content: content[:-1]), "File is not a zip"),
    "zeros, as a crash of the machine may leave": (
        spoilt(lambda content: bytes(len(content))), "not a checkpoint"),
    "first bit": (flip(0), "not a checkpoint"),
    "bit of the content": (flip(2000), "damaged"),
    "bit of the archive's directory": (flip(-200), "readable"),
    "plain torch.save": (lambda path: torch.save(dict(model={}), path), "not written by fit"),
    "text": (lambda path: path.write_text("weights to follow\n" * 10), "not a checkpoint"),
    "PNG": (lambda path: path.write_bytes(PNG), "not a checkpoint"),
    "newer schema": (forged(schema=3), "schema 3, of another version; this one reads 2"),
    "model missing": (without("model"), "holds no model"),
    "history missing": (without("history"), "holds no history"),
    "history of text": (forged(history="long"), "holds no history"),
    "no epochs": (forged(history=[]), "history: must be of epochs 1, 2, 3"),
    "epochs in disorder": (forged(history=[dict(epoch=2), dict(epoch=1)]), "history: must be of"),
    "directory": (directory, "cannot be read"),
    "older under a higher number": (older_under_a_higher_number,
                                    "holds epoch 3, not that of its name"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_passed_over(damage, kept):
    spoil, reason = DAMAGES[damage]
    spoil(kept / "epoch-00004.pt")
    if damage != "older under a higher number":  # by itself it is a good one
        with pytest.raises(CheckpointError, match=rf"epoch-00004\.pt: .*({reason})"):
            read_checkpoint(kept / "epoch-00004.pt")
    with pytest.warns(UserWarning, match=rf"epoch-00004\.pt: .*({reason}).*; going back to epoch-"
                      r"00003\.pt") as told:
        content = newest_checkpoint(kept)
    assert len(told) == 1 and len(content["history"]) == 3
    assert names(kept) == ["epoch-00003.pt", "epoch-00004.pt"]


@given(data=st.data())
@settings(max_examples=200, database=None)
def test_flipped_bit_or_cut_is_noticed_or_without_effect(data, small_folder, tmp_path_factory):
    intact = (small_folder / "epoch-00004.pt").read_bytes()
    place = data.draw(st.integers(0, len(intact) - 1) | st.integers(len(intact) - 2000,
                                                                   len(intact) - 1))
    bit = data.draw(st.none() | st.integers(0, 7))
    content = bytearray(intact)
    if bit is None:
        del content[place:]
    else:
        content[place] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "spoilt"
    path.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        assert "spoilt" in str(error)
    else:  # in the archive's padding, or a date
        assert differences(found, read_checkpoint(small_folder / "epoch-00004.pt")) == []


def test_where_none_is_good_nothing_is_deleted(kept):
    (kept / "epoch-00003.pt").write_bytes(b"")
    flip(2000)(kept / "epoch-00004.pt")
    before = contents(kept)
    for use in (resume_small, load_model, newest_checkpoint):
        with pytest.raises(CheckpointError, match="nothing was deleted") as told:
            use(kept)
        for text in ("epoch-00003.pt: not read", "epoch-00004.pt: not read", "name another check"):
            assert text in str(told.value)
        assert contents(kept) == before


@pytest.mark.parametrize("part", ["model", "momentum_buffer"])
@pytest.mark.parametrize("kind", fuzz.FORGERIES)
def test_forged_tensor_is_refused_before_anything_is_loaded(kind, part, kept):
    """momentum_buffer: torch.zeros(3) was written past its end by fused SGD."""
    content = read_checkpoint(kept / "epoch-00004.pt")
    if part == "model":
        name = "layers.3.weight"
        content["model"][name] = fuzz.FORGERIES[kind](content["model"][name])
    else:
        name, (key, tensor) = 4, *content["optimizer"]["state"][4].items()
        content["optimizer"]["state"][4][key] = fuzz.FORGERIES[kind](tensor)
    forge(kept / "epoch-00004.pt", content)
    refused(kept, rf"epoch-00004\.pt: .*{part}/{name} (is|has)")


def test_names_of_tensors_are_checked(kept):
    whole = read_checkpoint(kept / "epoch-00004.pt")
    for change, match in ((lambda model: model.pop("layers.0.bias"),
                           "model/layers.0.bias is 'missing'; must be"),
                          (lambda model: model.update(more=torch.zeros(2)),
                           "model/more is .*; must be 'missing'"),
                          (lambda model: model.update(more="missing"), "model/more is 'missing'")):
        content = copy.deepcopy(whole)
        change(content["model"])
        forge(kept / "epoch-00004.pt", content)
        refused(kept, match)
    state = whole["optimizer"]["state"] | {99: dict(momentum_buffer=torch.zeros(2))}
    forge(kept / "epoch-00004.pt", whole | dict(optimizer=whole["optimizer"] | dict(state=state)))
    refused(kept, "momentum_buffer/99 is .*; must be 'missing'")


# ---- the folder ---------------------------------------------------------------------------------


def test_last_two_are_kept(tmp_path):
    for epochs, expected in ((1, [1]), (2, [1, 2]), (3, [2, 3]), (12, [11, 12])):
        folder = tmp_path / str(epochs)
        small_run(folder, epochs)
        assert names(folder) == [f"epoch-{epoch:05}.pt" for epoch in expected]


def test_files_of_other_names_are_left_alone_and_not_read(tmp_path):
    others = ["best.pt", "epoch-00001-copy.pt", "epoch-best.pt", "epoch-1.pt", "epoch-000001.pt",
              "epoch-\N{ARABIC-INDIC DIGIT ONE}0000.pt", "notes.txt", ".epoch-00001.pt.swp",
              ".epoch-00001.pt.12.tmp", "epoch-00001.pt.tmp", "EPOCH-00001.PT.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")
    with claim(tmp_path):
        assert newest_checkpoint(tmp_path) is None
        small_run(tmp_path)
    assert names(tmp_path) == sorted([*others, "epoch-00003.pt", "epoch-00004.pt"])
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_later_bad_checkpoints_do_not_push_out_good_ones(kept):
    for name in ("epoch-00098.pt", "epoch-00099.pt"):
        (kept / name).write_bytes(b"from somewhere")
    model = Small(seed=1)
    with pytest.warns(UserWarning, match="going back to epoch-00004"):
        resume_small(kept, model=model)
    small_run(kept, 6, model=model, since=4)
    assert names(kept) == ["epoch-00005.pt", "epoch-00006.pt", "epoch-00098.pt", "epoch-00099.pt"]


def test_newest_is_the_highest_number_not_the_last_name(kept):
    for number in (99_998, 99_999, 100_000):
        (kept / f"epoch-{number}.pt").write_bytes(b"")
    with pytest.warns(UserWarning) as told:
        assert len(newest_checkpoint(kept)["history"]) == 4
    order = [re.search(r"epoch-(\d+)", str(warning.message))[1] for warning in told]
    assert order == ["100000", "99999", "99998"]


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "nowhere") is None
    assert resume_small(tmp_path) is None


def test_folder_that_cannot_be_listed_is_an_error_not_empty(kept, monkeypatch):
    """Or the run would begin anew and write over what is there; the fuzz does it with real ones."""
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "listdir", forbidden)
    for use in (newest_checkpoint, resume_small, load_model):
        with pytest.raises(CheckpointError, match=r"cannot be listed \(Permission denied\)"):
            use(kept)


def test_paths_as_they_are_typed(kept, monkeypatch):
    monkeypatch.setenv("KEPT", str(kept))
    for typed in (str(kept), f' "{kept}" ', "$KEPT", "$KEPT/"):
        assert len(newest_checkpoint(typed)["history"]) == 4
        assert resume_small(typed) is not None
        with claim(typed) as folder:
            assert folder == kept
    assert read_checkpoint("$KEPT/epoch-00003.pt")["path"] == kept / "epoch-00003.pt"


@posix
def test_planted_links_are_not_followed(tmp_path):
    """In a folder that others may write to: at a temporary's, a checkpoint's name."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (f".epoch-00001.pt.{os.getpid()}.tmp", ".epoch-00001.pt.tmp", "epoch-00001.pt"):
        (folder / name).symlink_to(victim)
    small_run(folder, 1)
    assert not (folder / "epoch-00001.pt").is_symlink()
    assert victim.read_text() == "precious"


def test_temporary_names_cannot_be_foreseen(tmp_path, monkeypatch):
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a).name), replace(a, b)))
    small_run(tmp_path, 2)
    small_run(tmp_path, 2)
    assert len(set(seen)) == 4 and all(checkpoints.TEMPORARY.fullmatch(name) for name in seen)


def test_folder_that_is_gone_is_not_made_anew(tmp_path):
    model = Small()
    model.step(1)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "gone", model, model.optimizer, [dict(epoch=1)], CONFIG)
    assert names(tmp_path) == []


# ---- the claim ----------------------------------------------------------------------------------


def test_second_run_in_a_folder_is_refused(tmp_path):
    with claim(tmp_path / "a" / "b") as folder:
        for _ in range(2):
            with (pytest.raises(CheckpointError, match="in use by another run; name another, or"),
                  claim(folder)):
                pytest.fail("both have it")
    with claim(folder):
        assert names(folder) == []


def test_claim_ends_with_an_error_in_it(tmp_path):
    with pytest.raises(Killed), claim(tmp_path):
        kill()
    with claim(tmp_path):
        pass
    assert names(tmp_path) == []


def hold(folder):
    """A process that holds the claim of `folder` until it is killed: its id, once it has it."""
    def job(report):
        with claim(folder):
            report(1)
            time.sleep(60)
    pid, pipe = fuzz.start(job)
    assert os.read(pipe, 1) == b"\1"
    os.close(pipe)
    return pid


@posix
def test_claim_of_a_killed_run_locks_nobody_out(tmp_path):
    pid = hold(tmp_path)
    try:
        with pytest.raises(CheckpointError, match="in use by another run"), claim(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    half = tmp_path / ".epoch-00007.pt.0123456789abcdef.tmp"
    half.write_bytes(b"half")
    with claim(tmp_path):
        assert not half.exists()  # nobody else can be writing it


@posix
def test_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(checkpoints.fcntl, "flock", no_locks)
    with (pytest.warns(UserWarning, match=r"without locks \(No locks available\)") as told,
          claim(tmp_path)):
        small_run(tmp_path, 1)
    assert len(told) == 1 and names(tmp_path) == ["epoch-00001.pt"]


def test_folder_that_cannot_be_made_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        told = f"{re.escape(str(folder))}: cannot be written to"
        with pytest.raises(CheckpointError, match=told), claim(folder):
            pass


# ---- files made to harm -------------------------------------------------------------------------


class Payload:
    """Unpickled by a reader that trusts it, it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'echo harm > "{self.marker}"',)


def saved(content, **how):
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def as_archive(payload):
    return saved(dict(schema=2, config={}, model={}, optimizer={}, history=[], m=payload))


def as_old_format(payload):
    return saved(dict(schema=2, model=payload), _use_new_zipfile_serialization=False)


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
    return as_tar(payload) + saved(dict(schema=2))


def as_pickle_and_archive(payload):
    return b"PK" + as_tar(payload) + saved(dict(schema=2))


def as_two_archives(payload):
    """Python takes the second one; what stands before it shifts the places of its entries."""
    return as_archive(payload) + saved(dict(schema=2))


PACKED = [as_archive, as_old_format, as_bare_pickle, as_tar, as_tar_and_archive,
          as_pickle_and_archive, as_two_archives]


@pytest.mark.parametrize("packed", PACKED, ids=lambda function: function.__name__)
def test_code_in_a_checkpoint_does_not_run(packed, kept):
    """Before torch 2.6 its reader of old formats ran it despite weights_only (CVE-2025-32434)."""
    marker = kept / "harmed"
    path = kept / "epoch-00099.pt"
    path.write_bytes(packed(Payload(marker)))
    for use in (read_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=r"epoch-00099\.pt: .*not (a|read)"):
            use(path)
    with pytest.warns(UserWarning, match="epoch-00099"):
        resume_small(kept)
    assert not marker.exists()


def test_payload_would_have_run(tmp_path):
    """The control: unpickled with trust, it does."""
    torch.load(io.BytesIO(as_archive(Payload(tmp_path / "harmed"))), weights_only=False)
    assert (tmp_path / "harmed").exists()


def test_file_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    with pytest.raises(CheckpointError, match="unpack to more"):
        read_checkpoint(tmp_path / "bomb.pt")


# ---- the trained model --------------------------------------------------------------------------

COMMON = dict(device="cpu", precision="fp32", batch_size=16, epochs=4)
# or their twelve steps would take a minute
SMALLER = dict(strong=dict(width=0.1), compact=dict(width=0.5),
               taught=dict(width=0.5, localization_width=0.5))
EXPERIMENTS = {name: Config.preset(name, **COMMON, **SMALLER.get(name, {})) for name in PRESETS
               if name != "glyphs"}
# what the presets may not use: state in the optimizer, a schedule, every guard rail
EXPERIMENTS["guarded"] = Config.preset(
    "tutorial", transform="similarity", momentum=0.9, weight_decay=5e-4, seed=3, schedule="linear",
    outside_weight=0.1, identity_weight=0.01, scale_weight=0.1, max_scale=1.01, **COMMON)
EXPERIMENTS["augmented"] = Config.preset(
    "tutorial", seed=4, flip=True, shift=3, cutout=8, label_smoothing=0.1, warmup=0.6,
    weight_decay=5e-4, **COMMON)
EXPERIMENTS["control"] = EXPERIMENTS["taught"].replace(
    stn=False, pose_bins=0, pose_weight=0.0, teacher_forcing=0.0, localization=None,
    localization_width=1.0)
TUTORIAL, GUARDED = EXPERIMENTS["tutorial"], EXPERIMENTS["guarded"]


def trained(folder, config):
    """A model of `config`, saved as if after an epoch, with numbers that no seed gives."""
    folder.mkdir(exist_ok=True)
    model = build_model(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor is not model.mean and tensor is not model.std:
                tensor += 0.01
    save_checkpoint(folder, model, make_optimizer(model, 0.1), [dict(epoch=1)], config)
    return model.eval()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_load_model_is_the_trained_model(experiment, tmp_path):
    config = EXPERIMENTS[experiment]
    expected = trained(tmp_path / "folder", config)
    images = torch.rand(2, *expected.input_shape, generator=torch.Generator().manual_seed(0))
    random_state = torch.get_rng_state()
    with torch.no_grad():
        for path in (tmp_path / "folder", str(tmp_path / "folder" / "epoch-00001.pt")):
            model = load_model(path, device="cpu")
            assert torch.equal(model(images), expected(images))
            assert not model.training and model.config == config
            assert differences(model.state_dict(), expected.state_dict()) == []
    assert torch.equal(torch.get_rng_state(), random_state)


def by_hand(model, config, folder):
    """`model` after `fit`, which keeps it in `folder`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=generator)
    fit(model, Data(Split(images, torch.arange(20) % 10), classes=range(10)), config, folder)
    return model


def test_a_model_put_together_by_hand_is_not_taken_for_that_of_its_config(tmp_path):
    """Its tensors have the same names and shapes; what it does with them need not be the same."""
    config = TUTORIAL.replace(epochs=1)
    parts = build_model(config)
    transformer = SpatialTransformer(parts.transformer.localization, interpolation="bicubic")
    hand_made = STNClassifier(transformer, parts.classifier, (3, 32, 32), 10)
    by_hand(hand_made, config, tmp_path / "by hand")
    with pytest.raises(CheckpointError, match=r"that build_model did not make; .*by hand is put "):
        load_model(tmp_path / "by hand", device="cpu")
    built = by_hand(build_model(config), config, tmp_path / "built")
    assert differences(load_model(tmp_path / "built", "cpu").state_dict(), built.state_dict()) == []
    built = build_model(config)
    built.transformer.interpolation = "bicubic"
    by_hand(built, config, tmp_path / "changed")
    with pytest.raises(CheckpointError, match="that build_model did not make"):
        load_model(tmp_path / "changed", device="cpu")
    with pytest.raises(ValueError, match=r"transformer: .*bicubic.* in the checkpoint, .*bilinear"):
        by_hand(build_model(config), config, tmp_path / "changed")


def test_the_same_name_and_number_of_other_images_is_another_run(tmp_path):
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    config, labels = TUTORIAL.replace(epochs=1), torch.arange(20) % 2
    data = Data(Split(images, labels))
    assert fit(build_model(config, data), data, config, tmp_path)
    assert fit(build_model(config, data), data, config, tmp_path)  # complete: it is the same run
    for other in (Split(images + 1, labels), Split(images, 1 - labels)):
        with pytest.raises(ValueError, match=r"training_data: \d+ in the checkpoint, \d+ now"):
            fit(build_model(config, data), Data(other), config, tmp_path)


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    model = Small()
    model.step(1)
    for value in (np.float64(0.5), Path("a")):
        with pytest.raises(CheckpointError, match=r"^checkpoint_dir: epoch 1 cannot be kept, .*nu"):
            save_checkpoint(tmp_path, model, model.optimizer, [dict(epoch=1, f1=value)], CONFIG)
    assert names(tmp_path) == []
    save_checkpoint(tmp_path, model, model.optimizer, [dict(epoch=1, f1=0.5)], CONFIG)
    assert newest_checkpoint(tmp_path)["history"] == [dict(epoch=1, f1=0.5)]


def test_an_infinite_mask_is_no_damage_but_an_infinite_weight_is(tmp_path):
    class Masked(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(3072, 10))
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

    def build():
        localization = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6))
        return STNClassifier(SpatialTransformer(localization), Masked(), (3, 32, 32), 10)

    config = TUTORIAL.replace(epochs=2)
    by_hand(build(), config.replace(epochs=1), tmp_path)
    model = by_hand(build(), config, tmp_path)
    assert read_checkpoint(tmp_path / "epoch-00002.pt")["model"]["classifier.mask"][0, 1] < 0
    with torch.no_grad():
        model.classifier[1].weight[0, 0] = math.inf
    with pytest.raises(NonFiniteLoss):
        by_hand(model, config, None)


def test_load_model_goes_back_where_the_newest_is_damaged(tmp_path):
    expected = trained(tmp_path, TUTORIAL)
    (tmp_path / "epoch-00002.pt").write_bytes(PNG)
    with pytest.warns(UserWarning, match=r"epoch-00002\.pt: .*cut off, or not a checkpoint"):
        model = load_model(tmp_path, device="cpu")
    assert differences(model.state_dict(), expected.state_dict()) == []


def test_load_model_says_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: cannot be read \(No such file"):
        load_model(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(epoch-00001\.pt"):
        load_model(tmp_path)
    (tmp_path / "model.pt").write_bytes(PNG)
    with pytest.raises(CheckpointError, match=r"model\.pt: .*not a checkpoint"):
        load_model(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"path: .*must name"):
        load_model(" ")


def test_load_model_without_the_device_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trained(tmp_path, TUTORIAL)
    with pytest.raises(ValueError, match="device: 'cuda'"):
        load_model(tmp_path, device="cuda")
    with pytest.raises(ValueError, match="device: 'toaster'"):
        load_model(tmp_path, device="toaster")


@pytest.mark.parametrize("change, told", [
    (dict(learning_rate=-1.0), "learning_rate"), (dict(transform="cubist"), "transform"),
    (dict(batch_size="many"), "batch_size"), (dict(stn=False), "transformer"),
    (dict(model="separable"), "classifier"), (dict(output_size=10**9), "")])
def test_config_with_bad_values_is_refused(change, told, tmp_path):
    trained(tmp_path, TUTORIAL)
    content = read_checkpoint(tmp_path / "epoch-00001.pt")
    path = forge(tmp_path / "bad.pt", content | dict(config=content["config"] | change))
    with pytest.raises(CheckpointError, match=rf"bad\.pt: does not fit .*{told}"):
        load_model(path)


@pytest.mark.parametrize("change", [
    dict(num_classes=10**10), dict(num_classes=11), dict(num_classes=-1),
    dict(input_shape=[3, 10**6, 10**6]), dict(input_shape=[3, 48, 48]), dict(input_shape=[3]),
    dict(input_shape=["a", "b", "c"])], ids=str)
def test_huge_or_other_model_is_refused_before_memory_is_taken(change, tmp_path, monkeypatch):
    """Weights to match, of one number that poses as many billions, do not help it."""
    trained(tmp_path, TUTORIAL)
    content = read_checkpoint(tmp_path / "epoch-00001.pt")
    plain = forge(tmp_path / "huge.pt", content | change)
    content["model"] = {name: torch.zeros((), dtype=tensor.dtype).expand(
        [10**10 if size == 10 else size for size in tensor.shape])
        for name, tensor in content["model"].items()}
    posing = forge(tmp_path / "posing.pt", content | change)
    assemble = stn.assemble

    def on_meta_only(*args):
        assert torch.empty(0).is_meta, "built it"
        return assemble(*args)
    monkeypatch.setattr(stn, "assemble", on_meta_only)
    for path in (plain, posing):
        with pytest.raises(CheckpointError, match=rf"{path.name}: (does not fit|model/)"):
            load_model(path)


# ---- training, broken off and resumed -----------------------------------------------------------

EPOCHS, STEPS = 4, 3  # an epoch: 40 images in batches of 16, the last one ragged


@functools.cache
def small_data(name="images"):
    """"glyphs", or random images in CIFAR-10's shape."""
    if name == "glyphs":
        train, val, test = (Split(*make_glyphs(count, seed)) for seed, count in
                            enumerate((40, 20, 30)))
        return Data(train, val, test, CLASSES, "glyphs")
    generator = torch.Generator().manual_seed(0)
    images = Split(torch.randint(256, (90, 3, 32, 32), dtype=torch.uint8, generator=generator),
                   torch.randint(10, (90,), generator=generator))
    return Data(images[:40], images[40:60], images[60:], tuple("abcdefghij"), "images")


class Run:
    """One call of fit with a fresh model; what happened: .model, .history, .seen and .content."""

    def __init__(self, folder, config=TUTORIAL, data="images", on_epoch_end=None,
                 on_step=lambda model, step: None):
        self.model, self.seen = build_model(config, small_data(data)), []

        def before(module, inputs):
            if module.training:
                on_step(self.model, len(self.seen))

        def after(module, inputs, logits):  # logits show data order, distortion, dropout at once
            if module.training:
                self.seen.append(logits.detach().clone())

        self.model.classifier.register_forward_pre_hook(before)
        self.model.classifier.register_forward_hook(after)
        self.history = list(fit(self.model, small_data(data), config, folder,
                                on_epoch_end=on_epoch_end))
        self.content = newest_checkpoint(folder) if folder else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(experiment, data): the run that was never interrupted, trained once."""
    @functools.cache
    def run(experiment="tutorial", data="images"):
        return Run(tmp_path_factory.mktemp("whole"), EXPERIMENTS[experiment], data)
    return run


def between(a, b):
    """Where two runs differ: checkpoint, model, history (but for its seconds)."""
    return (differences(a.content, b.content, "checkpoint")
            + differences(a.model.state_dict(), b.model.state_dict(), "model")
            + differences(a.history, b.history, "history"))


class HalfWritten(io.FileIO):
    """A file of which only the first half of what is written arrives; then `self.then()`."""

    def write(self, content):
        super().write(content[:len(content) // 2])
        self.then()


def break_writing(patch, then):
    """From now on checkpoints are written by half only; then `then` is called."""
    def half(path, mode, *args, **kwargs):
        if "x" not in mode:
            return open(path, mode, *args, **kwargs)
        file = HalfWritten(path, mode)
        file.then = then
        return file
    patch.setattr(files, "open", half, raising=False)


def after_two_epochs(do):
    return dict(on_epoch_end=lambda model, history: len(history) == 2 and do())


WAYS = dict(
    at_an_epochs_end=lambda patch: after_two_epochs(kill),
    in_the_middle_of_an_epoch=lambda patch: dict(
        on_step=lambda model, step: step == 2 * STEPS + 1 and kill()),
    while_pickling=lambda patch: after_two_epochs(lambda: patch.setattr(torch, "save", kill)),
    while_writing=lambda patch: after_two_epochs(lambda: break_writing(patch, kill)),
    while_syncing=lambda patch: after_two_epochs(lambda: patch.setattr(os, "fsync", kill)),
    while_renaming=lambda patch: after_two_epochs(lambda: patch.setattr(os, "replace", kill)))
# how a file is written has nothing to do with the recipe
MIDDLE = "in_the_middle_of_an_epoch"
BREAKS = [*((MIDDLE, experiment, "images") for experiment in EXPERIMENTS),
          *((way, "guarded", "images") for way in WAYS if way != MIDDLE),
          (MIDDLE, "tutorial", "glyphs")]


@pytest.mark.parametrize(("way", "experiment", "data"), BREAKS,
                         ids=map("-".join, BREAKS))
def test_broken_off_run_goes_on_to_the_very_same_result(way, experiment, data, whole, tmp_path,
                                                        capsys):
    config = EXPERIMENTS[experiment]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        Run(tmp_path, config, data, **WAYS[way](patch))
    assert len(newest_checkpoint(tmp_path)["history"]) == 2
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left, nor the claim
    torch.rand(7)  # the process that goes on is another one, whose random state is anywhere
    random_state = torch.get_rng_state()
    resumed = Run(tmp_path, config, data)
    assert f"resuming after epoch 2 of {EPOCHS}" in capsys.readouterr().out
    assert between(resumed, whole(experiment, data)) == []
    # and not only in the end: the first step drew the same images, poses and dropout masks
    assert differences(resumed.seen, whole(experiment, data).seen[2 * STEPS:]) == []
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("experiment", ["guarded", "taught"])
def test_comparison_shows_one_changed_step(experiment, whole, tmp_path):
    """The negative control: one weight of thousands, moved by the least, before one step."""
    def nudge(model, step):
        if step == 2 * STEPS + 1:
            with torch.no_grad():
                weight = next(model.classifier.parameters())[0, 0, 0]
                weight[0] = torch.nextafter(weight[0], torch.tensor(1e9))
    changed = between(Run(tmp_path, EXPERIMENTS[experiment], on_step=nudge), whole(experiment))
    assert any(name.startswith("model/") for name in changed)
    assert any(name.startswith("checkpoint/model/") for name in changed)


def test_interrupted_again_and_again(whole, tmp_path):
    for epoch in range(1, EPOCHS):
        with pytest.raises(Killed):
            Run(tmp_path, on_epoch_end=kill)
        assert len(newest_checkpoint(tmp_path)["history"]) == epoch
    assert between(Run(tmp_path), whole()) == []


def test_what_was_compared(whole):
    """A comparison of nothing would always succeed."""
    content = whole("guarded").content
    buffers = [item["momentum_buffer"] for item in content["optimizer"]["state"].values()]
    assert len(buffers) == len(content["model"]) and all(buffer.any() for buffer in buffers)
    assert [row["epoch"] for row in content["history"]] == [1, 2, 3, 4]
    assert content["config"] == GUARDED.to_dict()
    assert len(whole("guarded").seen) == EPOCHS * STEPS
    statistics = [value for name, value in whole("compact").content["model"].items()
                  if name.endswith("num_batches_tracked")]
    assert statistics and {int(count) for count in statistics} == {EPOCHS * STEPS}


def test_what_is_asked_of_the_model_after_an_epoch_does_not_change_the_result(whole, tmp_path):
    """Running statistics of normalization would move, had the model stayed in training mode."""
    def look(model, history):
        images = small_data().test.images
        model(images), model.transform(images), load_model(tmp_path)
        assert not model.training
    assert between(Run(tmp_path, EXPERIMENTS["compact"], on_epoch_end=look), whole("compact")) == []


def test_checkpoints_do_not_change_the_result(whole):
    without = Run(None)
    assert differences(without.model.state_dict(), whole().model.state_dict()) == []
    assert differences(without.history, whole().history) == []


def test_raising_epochs_goes_on_to_the_result_of_the_longer_run(whole, tmp_path, capsys):
    Run(tmp_path, TUTORIAL.replace(epochs=2))
    assert differences((longer := Run(tmp_path)).seen, whole().seen[2 * STEPS:]) == []
    assert between(longer, whole()) == []


def test_finished_run_is_given_back_without_training(whole, tmp_path):
    for name, content in contents(whole().content["path"].parent).items():
        (tmp_path / name).write_bytes(content)
    again = Run(tmp_path)
    assert again.seen == [] and between(again, whole()) == []


def test_fit_holds_the_claim_and_gives_it_back(tmp_path):
    def another(model, history):
        with pytest.raises(CheckpointError, match="in use by another run"):
            Run(tmp_path, on_step=kill)
    Run(tmp_path, TUTORIAL.replace(epochs=2), on_epoch_end=another)
    assert names(tmp_path) == ["epoch-00001.pt", "epoch-00002.pt"]


def test_other_run_is_refused_by_fit(tmp_path):
    Run(tmp_path, TUTORIAL.replace(epochs=1))
    with pytest.raises(ValueError, match="seed: 0 in the checkpoint, 7 now"):
        Run(tmp_path, TUTORIAL.replace(seed=7), on_step=kill)


# ---- trouble with the folder while it trains ----------------------------------------------------


def fail_as_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_told_once_and_training_goes_on(tmp_path, whole):
    """Full at epochs 2 and 3, room again at 4."""
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning) as told:
        def change(model, history):
            expected = ([1], [1], [1], [1, 4])[len(history) - 1]
            assert names(tmp_path) == [f"epoch-{n:05}.pt" for n in expected]
            if len(history) == 1:
                break_writing(patch, fail_as_full)
            if len(history) == 3:
                patch.undo()
        run = Run(tmp_path, on_epoch_end=change)
    assert len(told) == 1
    assert re.search(f"cannot write to {tmp_path} .*No space left on device", str(told[0].message))
    assert between(run, whole()) == []


def test_folder_that_vanishes_and_comes_back(tmp_path, whole):
    """A drive that unmounts: nothing is written in its place, which would be in its way later."""
    folder, away = tmp_path / "drive", tmp_path / "away"

    def change(model, history):
        if len(history) == 1:
            folder.rename(away)
        elif len(history) == 3:
            assert not folder.exists()
            away.rename(folder)
    with pytest.warns(UserWarning, match=r"cannot write to .*drive .*No such file") as told:
        run = Run(folder, on_epoch_end=change)
    assert len(told) == 1 and names(folder) == ["epoch-00001.pt", "epoch-00004.pt"]
    assert between(run, whole()) == []


def test_folder_that_becomes_unwritable_for_good(tmp_path, whole):
    folder, runs = tmp_path / "folder", []

    def change(model, history):
        runs.append(list(history))
        if len(history) == 1:
            folder.rename(tmp_path / "away")
            folder.write_text("a file in its place")
    with pytest.warns(UserWarning, match="cannot write to") as told:
        fit(build_model(TUTORIAL), small_data(), TUTORIAL, folder, on_epoch_end=change)
    assert len(told) == 1 and differences(runs[-1], whole().history) == []
    assert folder.read_text() == "a file in its place"


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "torch.save"])
def test_ctrl_c_in_the_middle_of_a_save_keeps_that_epoch_too(where, tmp_path, whole, capsys):
    with pytest.MonkeyPatch.context() as patch:
        def stop(*_, **__):
            patch.undo()
            raise KeyboardInterrupt

        def break_the_second(model, history):
            if len(history) == 1:
                patch.setattr(where, stop)
        stopped = Run(tmp_path, on_epoch_end=break_the_second)
    assert len(stopped.history) == len(stopped.content["history"]) == 2
    assert "2 of 4 epochs are complete and kept" in capsys.readouterr().out
    assert names(tmp_path) == ["epoch-00001.pt", "epoch-00002.pt"]
    assert between(Run(tmp_path), whole()) == []


def test_training_in_a_thread(tmp_path, whole):
    """Where Python allows no signal handlers."""
    runs = []
    thread = threading.Thread(target=lambda: runs.append(Run(tmp_path)))
    thread.start()
    thread.join()
    assert between(runs[0], whole()) == []


def test_weights_that_the_last_step_spoilt_are_not_kept(tmp_path):
    """The loss of that step was taken before it, and is finite."""
    def spoil_the_last(model, step):
        if step == 2 * STEPS - 1:
            bias = list(model.classifier.parameters())[-1]
            bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss, match="in epoch 2, step 3 of 3"):
        Run(tmp_path, on_step=spoil_the_last)
    assert len(newest_checkpoint(tmp_path)["history"]) == 1


# ---- real kills, and damages at random ----------------------------------------------------------

CHILD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import fuzz_checkpoints as fuzz
import torch

folder, job, threads = sys.argv[1:]
# whatever this test run was started with: nohup and & leave Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(threads))

def stall(*_):
    print("half", flush=True)
    time.sleep(60)

def report(epoch):
    print("epoch", epoch, flush=True)
    if job == "stall in the third save" and epoch == 2:
        os.fsync = stall

history = fuzz.train(folder, fuzz.tiny_data(), epochs=5_000, report=report)
print("returned", len(history), flush=True)
"""


class Child:
    """A real process that trains into `folder`; used in a `with`, after which it is over."""

    def __init__(self, folder, job):
        threads = str(torch.get_num_threads())  # their number may change the last bit
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD, str(folder), job, threads],
            stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        self.limit = threading.Timer(120, self.process.kill)  # what never comes should fail

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
    content = newest_checkpoint(folder)
    assert len(content["history"]) == epochs
    fuzz.train(folder / "undisturbed", fuzz.tiny_data(), epochs=epochs)
    expected = newest_checkpoint(folder / "undisturbed")  # the children were to train longer
    assert differences(expected, content, skip=("seconds", "path", "epochs")) == []


@posix
@pytest.mark.slow
def test_real_kill_in_the_middle_of_a_save(tmp_path):
    with Child(tmp_path, "stall in the third save") as child:
        child.says("half")
        os.kill(child.process.pid, signal.SIGKILL)
        assert child.process.wait(60) == -signal.SIGKILL
    assert_on_its_way(tmp_path, 2)  # without a warning: half-written, it never had the name
    fuzz.train(tmp_path, fuzz.tiny_data(), epochs=3)  # and it is in nobody's way
    assert_on_its_way(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))


@posix
@pytest.mark.slow
def test_real_ctrl_c_saves_and_returns(tmp_path):
    with Child(tmp_path, "heed Ctrl-C") as child:
        child.says("epoch 3")
        child.process.send_signal(signal.SIGINT)
        told = int(child.says(r"stopped; (\d+) of 5000 epochs are complete and kept in")[1])
        returned = int(child.says(r"returned (\d+)")[1])
        assert child.process.wait(60) == 0
    assert told == returned >= 3
    assert_on_its_way(tmp_path, returned)


def fuzz_in(tmp_path, *counts):
    out = tmp_path / "fuzz.json"
    script = [sys.executable, "-W", "error", "tests/fuzz_checkpoints.py", *counts]
    done = subprocess.run([*script, "--out", str(out)], cwd=REPOSITORY, capture_output=True,
                          text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"outcome": "passed"' in out.read_text(encoding="utf-8")


@posix
def test_fuzz_in_short(tmp_path):
    fuzz_in(tmp_path, "--kills", "2", "--damages", "30", "--forgeries", "20", "--rivals", "1")


@posix
@pytest.mark.slow
def test_fuzz(tmp_path):
    fuzz_in(tmp_path, "--kills", "40", "--damages", "200", "--forgeries", "200", "--rivals", "5",
            "--seed", "1")
