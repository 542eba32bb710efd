"""The command line: what it writes, says, refuses, and how it ends."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_cifar import Config, Data, Split, build_model, fit
from stn_cifar import __main__ as command_line
from stn_cifar.__main__ import main, run_label
from stn_cifar.data import DataError, glyphs
from stn_cifar.data.suites import suite
from stn_cifar.presets import PRESETS
from stn_cifar.training.loop import NonFiniteLoss

REPOSITORY = Path(__file__).parents[1]
FIGURES = ("strip", "pairs", "regions", "theta", "means", "confusion", "mistakes", "robustness",
           "curves", "bands", "film")


@pytest.fixture
def few_glyphs(monkeypatch):
    make = glyphs.make_glyphs
    monkeypatch.setattr(glyphs, "make_glyphs", lambda count, seed: make(count // 500, seed))


class FakeFilm:
    """A film without pictures; it stops the run after the epoch `stop`."""

    stop = None

    def __init__(self, model, data):
        self.frames, self.epochs, self.bands = [], [], []
        self(model, [])

    def __call__(self, model, history):
        if self.epochs[-1:] != [len(history)]:
            self.frames, self.epochs = [*self.frames, 0], [*self.epochs, len(history)]
            if len(history) == self.stop:
                raise KeyboardInterrupt

    def gif(self, path):
        path.write_bytes(b"GIF89a")


@pytest.fixture
def quick(monkeypatch, few_glyphs):
    """Figures that take no time. Gives the namespace that stands in for stn_cifar.plots."""
    def save(figure, path):
        path.write_bytes(b"\x89PNG")

    names = ("strip", "pairs", "sampled_regions", "theta_histograms", "class_means", "confusion",
             "mistakes", "robustness", "curves", "theta_bands", "families", "turned_and_upright")
    fake = types.SimpleNamespace(Film=FakeFilm, save=save, title_of=lambda *_: "a title",
                                 **{name: lambda *_: None for name in names})
    monkeypatch.setattr(command_line, "plots", fake)
    monkeypatch.setattr(command_line.diagnostics, "robustness", lambda *_: {})
    monkeypatch.setattr(FakeFilm, "stop", None)
    return fake


def train(folder, *more):
    return main(["train", "--results", str(folder / "r"), "--images", str(folder / "i"),
                 "--device", "cpu", *more])


def train_glyphs(folder, *more):
    return train(folder, "--dataset", "glyphs", "--epochs", "1", "--precision", "fp32",
                 "--checkpoint-dir", str(folder / "c"), *more)


def record_in(folder):
    path, = (folder / "r").iterdir()
    return path, json.loads(path.read_text(encoding="utf-8"))


# ---- train and evaluate --------------------------------------------------------------------------


def test_train_writes_record_model_and_figures_and_says_where(few_glyphs, tmp_path, capsys):
    """With the real figures, and one of a family whose label shows."""
    assert train_glyphs(tmp_path, "--transform", "rotation") == 0
    path, record = record_in(tmp_path)
    assert record["finished"] and record["config"]["transform"] == "rotation"
    assert record["test"]["images"] == 20 and record["dataset"] == "glyphs"
    pictures = sorted((tmp_path / "i").iterdir())
    assert {picture.stem.rpartition("-")[2] for picture in pictures} == set(FIGURES)
    for picture in pictures:
        assert picture.name.startswith(f"{path.stem}-")
        start = b"GIF89a" if picture.suffix == ".gif" else b"\x89PNG"
        assert picture.read_bytes().startswith(start)
    out, err = capsys.readouterr()
    told = [f"test accuracy {record['test']['accuracy']:.1%} on 20 images of glyphs",
            f"record: {path}", f"--checkpoint {tmp_path / 'c'}", f"figures: {tmp_path / 'i'}"]
    places = [out.index(text) for text in told]
    assert places == sorted(places) and err == ""  # the accuracy first


def test_evaluate_shows_the_model_that_train_has_kept(quick, tmp_path, capsys):
    assert train_glyphs(tmp_path, "--no-stn", "--seed", "3") == 0
    _, record = record_in(tmp_path)
    for path in (tmp_path / "c", tmp_path / "c" / "epoch-00001.pt"):
        capsys.readouterr()
        assert main(["evaluate", "--checkpoint", str(path), "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert f"test accuracy {record['test']['accuracy']:.1%}, loss" in out
        assert "seed=3" in out and "20 images of glyphs" in out
    assert main(["evaluate", "--checkpoint", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err


def test_evaluate_measures_on_the_data_set_of_the_training_or_says_why_not(
        few_glyphs, tmp_path, capsys):
    """Not on what "auto" finds today: a model of glyphs is at chance on CIFAR-10."""
    config = Config(device="cpu", epochs=1, dataset="auto")
    for name, classes in (("glyphs", glyphs.CLASSES), ("mine", tuple("abcdefghij")),
                          ("glyphs", tuple("abcdefghij"))):
        split = Split(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
        data = Data(split, test=split, classes=classes, name=name)
        folder = tmp_path / f"{name}-{classes[0]}"
        fit(build_model(config, data), data, config, folder)
        capsys.readouterr()
        status = main(["evaluate", "--checkpoint", str(folder), "--device", "cpu"])
        told = capsys.readouterr()
        if classes == glyphs.CLASSES:
            assert status == 0 and "images of glyphs" in told.out
        else:
            assert status == 2 and "test accuracy" not in told.out
            assert ("trained on 'mine'; must be one of CIFAR-10, glyphs" if name == "mine"
                    else "tells apart ['a', 'b'") in told.err


def test_the_model_is_kept_where_no_folder_is_named(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path, "--dataset", "glyphs", "--epochs", "1", "--no-stn") == 0
    folder, = Path("checkpoints").iterdir()
    assert folder.name.startswith("tutorial-glyphs-") and list(folder.glob("epoch-*.pt"))
    assert f"model: {folder} " in capsys.readouterr().out
    assert main(["evaluate", "--checkpoint", str(folder), "--device", "cpu"]) == 0


def test_trained_already_it_measures_and_draws_what_there_is(quick, tmp_path):
    assert train_glyphs(tmp_path) == 0
    path, record = record_in(tmp_path)
    path.unlink()
    assert train_glyphs(tmp_path) == 0
    again, measured = record_in(tmp_path)
    assert again == path and measured["test"] == record["test"]
    assert measured["history"] == record["history"]


def test_the_preset_taught_trains_without_data_and_network(quick, tmp_path, capsys):
    assert train_glyphs(tmp_path, "--preset", "taught", "--localization-width", "0.5") == 0
    assert "in random poses already" in capsys.readouterr().out
    path, record = record_in(tmp_path)
    assert path.stem.startswith("taught-glyphs-") and record["config"]["distortion"] is None
    assert "true_pose" in record["tta"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stopped_run_is_kept_apart_and_ends_with_130(quick, tmp_path, monkeypatch, epoch):
    monkeypatch.setattr(FakeFilm, "stop", epoch)
    assert train_glyphs(tmp_path, "--epochs", "3") == 130
    path, record = record_in(tmp_path)
    assert path.stem.endswith("-stopped") and record["epochs_done"] == epoch
    assert record["finished"] is False
    monkeypatch.setattr(FakeFilm, "stop", None)
    assert train_glyphs(tmp_path, "--epochs", "3") == 0  # goes on from where it was
    finished = tmp_path / "r" / f"{path.stem.removesuffix('-stopped')}.json"
    assert json.loads(finished.read_text())["epochs_done"] == 3


def test_a_run_stopped_in_its_first_epoch_has_nothing_to_show(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "fit", lambda *_: [])
    assert train_glyphs(tmp_path) == 130
    assert "model:" not in capsys.readouterr().out and not list((tmp_path / "r").iterdir())


def test_the_command_that_measures_again_can_be_copied(quick, tmp_path, capsys):
    folder = tmp_path / "a space"
    assert train_glyphs(tmp_path, "--checkpoint-dir", str(folder)) == 0
    out = capsys.readouterr().out
    assert f"every epoch's end is kept in {folder}" in out
    command, = re.findall(r"python -m stn_cifar (evaluate .*)\)", out)
    assert main(shlex.split(command)) == 0


def test_names_tell_what_was_trained_not_what_was_left_out(quick, tmp_path):
    assert train_glyphs(tmp_path, "--distortion", "rotation") == 0
    path, record = record_in(tmp_path)
    assert record["config"]["distortion"] is None and "distortion" not in path.stem


# ---- when something fails at the end -------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("latex"), OSError(28, "No space left on device"),
                                   IndexError("nothing there")])
def test_a_figure_that_fails_does_not_lose_the_others(quick, tmp_path, capsys, error):
    def fail(*_):
        raise error

    quick.pairs = quick.confusion = fail
    assert train_glyphs(tmp_path, "--no-stn") == 0
    out, err = capsys.readouterr()
    assert err == "".join(f"figure {name}: not drawn ({error})\n" for name in ("pairs",
                                                                               "confusion"))
    drawn = {picture.stem.rpartition("-")[2] for picture in (tmp_path / "i").iterdir()}
    assert drawn == set(FIGURES) - {"pairs", "confusion"} and ",means,mistakes," in out


def test_images_that_cannot_be_loaded_again_cost_their_figure_only(quick, tmp_path, capsys,
                                                                   monkeypatch):
    """Of a model for distorted images, robustness needs them undistorted."""
    make = glyphs.make_glyphs

    def plain(config):
        if config.distortion is None:
            raise DataError("the drive is gone")
        train, test = (Split(*make(20_000, seed)[:2]) for seed in (0, 1))
        images, theta = suite(test.images, config.distortion)
        return Data(train, None, Split(images, test.labels, theta), glyphs.CLASSES, "stand-in")

    monkeypatch.setattr(command_line, "load_data", plain)
    assert train_glyphs(tmp_path, "--distortion", "rotation") == 0
    out, err = capsys.readouterr()
    assert err == "figure robustness: not drawn (the drive is gone)\n" and "mistakes" in out


@pytest.mark.parametrize("error", [
    DataError("no data"), OSError("disk full"), NonFiniteLoss("the loss became nan"),
    MemoryError("batch_size: 9"), ValueError("epochs: 0")])
def test_expected_failures_are_one_line_and_no_traceback(quick, monkeypatch, tmp_path, capsys,
                                                         error):
    def fail(*_):
        raise error

    monkeypatch.setattr(command_line, "load_data", fail)
    assert train_glyphs(tmp_path) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_unforeseen_failure_keeps_its_traceback(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "load_data", lambda *_: [][0])
    with pytest.raises(IndexError):
        train_glyphs(tmp_path)


def test_ctrl_c_outside_training_ends_with_130(quick, monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "load_data", stop)
    assert train_glyphs(tmp_path) == 130 and capsys.readouterr().err == "stopped\n"


# ---- options -------------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch):
    """The configs that `train` would have run."""
    configs = []

    def build(config, *_):
        configs.append(config)
        raise ValueError("stopped here")

    monkeypatch.setattr(command_line, "build_model", build)
    split = Split(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    monkeypatch.setattr(command_line, "load_data", lambda config: Data(split, None, split))
    return configs


ALL = [
    dict(dataset="glyphs", data_root="x", val_size=5, distortion="rts", transform="similarity",
         localization="compact", iterations=2, padding_mode="border", supersample=3,
         output_size=24, model="strong", width=1.25, epochs=5, batch_size=5, learning_rate=1.25,
         localization_lr_scale=0.5, schedule="cosine", warmup=0.25, momentum=0.5,
         weight_decay=0.125, label_smoothing=0.25, flip=True, shift=5, cutout=5, precision="bf16",
         outside_weight=1.25, identity_weight=1.5, scale_weight=1.75, max_scale=2.5,
         pose_weight=0.75, extra_losses="pose=1, scale=0.5", seed=5, device="cpu"),
    dict(model="light", transform="rotation", localization="p4", localization_width=1.25,
         pose_bins=24, teacher_forcing=0.25, pose_weight=0.75),
    dict(stn=False)]


def flags(fields):
    for name, value in fields.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-")
        else:
            yield from (flag, "none" if value is None else str(value))


@pytest.mark.parametrize("fields", ALL)
def test_every_field_of_config_is_an_option(no_training, tmp_path, fields):
    assert train(tmp_path, *flags(fields), "--checkpoint-dir", str(tmp_path)) == 2
    assert no_training == [Config(**dict(device="cpu") | fields)]
    covered = {name for fields in ALL for name in fields} | {"name"}
    assert covered == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], Config.preset("tutorial")), (["--preset", "taught"], Config.preset("taught")),
    (["--preset", "compact", "--no-stn"], Config.preset("compact", stn=False)),
    (["--preset", "taught", "--distortion", "none"], Config.preset("taught", distortion=None)),
    (["--distortion", "None", "--localization", "none", "--output-size", "none", "--data-root",
      "none"], Config()),
    (["--output-size", "28"], Config(output_size=28))])
def test_a_preset_is_run_but_for_what_is_named(no_training, tmp_path, arguments, expected):
    assert train(tmp_path, "--checkpoint-dir", str(tmp_path), *arguments) == 2
    assert no_training == [expected.replace(device="cpu")]


def text_of(capsys, *arguments):
    """What ends with status 0 has printed, in one line."""
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_explains_every_field_by_group(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    text, last = text_of(capsys, "train", "--help"), -1
    for field in dataclasses.fields(Config):
        if field.name == "name":
            continue
        assert "--" + field.name.replace("_", "-") in text and field.metadata["help"] in text
    for group in ("data", "transformer", "classifier", "training", "losses", "run"):
        assert (last := text.index(f"{group} (overrides the preset)", last + 1)) > 0
    assert all(name in text for name in PRESETS) and "examples:" in text
    text = text_of(capsys, "--help")
    assert all(f"-m stn_cifar {name}" in text for name in (
        "train", "evaluate", "export-suite", "notebook", "study", "report", "bench"))
    from stn_cifar import __version__
    assert text_of(capsys, "--version") == f"stn_cifar {__version__}"


@pytest.mark.parametrize("arguments", [["--epochs", "1.5"], ["--epochs", "many"], ["--seed"],
                                       ["--no-such-flag"], ["--stn", "yes"], ["--epochs", "none"]])
def test_a_bad_flag_ends_with_2_and_its_name(no_training, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        train(tmp_path, *arguments)
    assert end.value.code == 2 and no_training == []
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last and (arguments[0] in last or arguments[-1] in last)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--epochs", "0"], "epochs: 0 is out of range"), (["--batch-size", "0"], "batch_size: 0"),
    (["--learning-rate", "nan"], "learning_rate: nan"), (["--device", "gpu"], "device: 'gpu'"),
    (["--transform", "afine"], "did you mean 'affine'"), (["--dataset", "mnist"], "'mnist'"),
    (["--preset", "tutorail"], "did you mean 'tutorial'"),
    (["--no-stn", "--pose-weight", "1"], "pose_weight: 1.0 with stn=False"),
    (["--iterations", "2", "--transform", "tps"], "iterations: ")])
def test_a_bad_value_ends_with_2_and_one_line(no_training, tmp_path, capsys, arguments, message):
    assert train(tmp_path, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and message in err and err.count("\n") == 1 and out == ""
    assert no_training == [] and list(tmp_path.iterdir()) == []  # nor are folders made for it


@pytest.mark.parametrize("which", ["--results", "--images", "--checkpoint-dir"])
def test_a_folder_that_cannot_be_written_is_told_before_training(no_training, tmp_path, capsys,
                                                                 which):
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert train(tmp_path, "--checkpoint-dir", str(tmp_path), which, str(place)) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {place}: cannot be written to") and err.count("\n") == 1
    assert no_training == []
    new = tmp_path / "new" / "folder"
    assert train(tmp_path, "--checkpoint-dir", str(tmp_path), which, str(new)) == 2
    assert len(no_training) == 1 and list(new.iterdir()) == []  # the attempt leaves nothing


def test_paths_are_taken_as_people_type_them(no_training, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--results", "~/r", "--images", " '$MINE/i' ", "--checkpoint-dir",
                 "~/c"]) == 2
    assert len(no_training) == 1 and not (tmp_path / "~").exists()
    assert all((tmp_path / name).is_dir() for name in ("r", "mine/i", "c"))


@pytest.mark.parametrize("given", ["", "$NOPE/x", "~nobody77/x"])
@pytest.mark.parametrize("command", [["train", "--results"], ["study", "rotation", "--results"]])
def test_a_path_that_means_nothing_is_told_in_its_own_words(capsys, command, given):
    with pytest.raises(SystemExit):
        main([*command, given])
    assert f"path: {given!r}" in capsys.readouterr().err


# ---- names of files ------------------------------------------------------------------------------


def test_a_label_tells_what_differs_and_stays_short():
    assert run_label(Config(), "CIFAR-10") == "tutorial-cifar10-s0"
    short = run_label(Config(transform="rotation", seed=3, device="cpu"), "glyphs")
    assert short == "tutorial-glyphs-transform=rotation-s3"
    many = [dict(ALL[0], epochs=epochs) for epochs in (5, 6)]
    labels = [run_label(Config(**fields), "CIFAR-10") for fields in many]
    assert labels[0] != labels[1] and all(len(label) < 80 for label in labels)
    assert labels[0] == run_label(Config(**many[0]), "CIFAR-10")  # the same again
    assert "/" not in run_label(Config(extra_losses="pose=1"), "../my/data")


# ---- other commands ------------------------------------------------------------------------------


def test_export_suite_writes_the_frozen_suite_twice_alike(monkeypatch, tmp_path, capsys):
    images, labels, _ = glyphs.make_glyphs(12, 0)
    split, asked = Split(images, labels), []
    monkeypatch.setattr(command_line, "load_data",
                        lambda config: asked.append(config) or Data(split, None, split))
    digests = []
    for name in ("a.npz", "b.npz"):
        assert main(["export-suite", "rotation", str(tmp_path / name), "--data-root", "x"]) == 0
        digests.append(capsys.readouterr().out.split()[-1])
    assert digests[0] == digests[1] and len(digests[0]) == 64
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert asked[0] == Config(dataset="cifar10", data_root="x")
    file = np.load(io.BytesIO((tmp_path / "a.npz").read_bytes()))
    parts = [file["images"], file["labels"], (file["theta"] * 1e5).round()]
    assert hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest() == digests[0]
    # distorted(p) = original(theta p): turned back by theta's inverse, it is the original
    for picture, theta, image in zip(file["images"], file["theta"], images, strict=True):
        inverse = torch.linalg.inv(torch.tensor(theta[:, :2]))[None]
        inverse = torch.cat([inverse, torch.zeros(1, 2, 1)], 2)
        grid = torch.nn.functional.affine_grid(inverse, [1, 3, 32, 32], align_corners=False)
        back = torch.nn.functional.grid_sample(torch.tensor(picture[None]).float(), grid,
                                               align_corners=False)[0]
        error, wrong = ((other - image)[:, 10:22, 10:22].abs().mean().item()
                        for other in (back, back.flip(-1)))
        assert error < 12 and error < wrong
    assert main(["export-suite", "rotatoin", str(tmp_path / "c.npz")]) == 2
    assert "'rotation45'" in capsys.readouterr().err and len(asked) == 2  # nothing is loaded for it
    assert main(["export-suite", "rotation", str(tmp_path / "a.npz")]) == 2
    assert "a.npz: is there already" in capsys.readouterr().err and len(asked) == 2
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


def test_figures_draws_what_needs_no_training(quick, tmp_path, capsys):
    assert main(["figures", "--dataset", "glyphs", "--images", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["transform_families.png"]
    assert str(tmp_path / "transform_families.png") in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["study", "ladder"], ["report"], ["bench", "--quick"]])
def test_commands_of_the_repository_say_so_where_the_package_is_alone(arguments, monkeypatch,
                                                                      tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "stn_cifar" / "__main__.py"))
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "clone the repository" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_study_is_told_with_those_there_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "lader", "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "'lader'" in err and "ladder" in err


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-W", "error", "-m", "stn_cifar", "train", "--epochs",
                           "0"], cwd=REPOSITORY, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: epochs: 0 is out of range; must be >= 1\n"
