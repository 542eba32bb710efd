"""Records of runs, the tables made of them, and the command line that makes both."""

import base64
import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_cifar import __main__ as command_line
from stn_cifar import data as data_module
from stn_cifar import distortions, study
from stn_cifar import report as tables
from stn_cifar.__main__ import main
from stn_cifar.config import PRESETS, Config
from stn_cifar.data import Data, Split
from stn_cifar.glyphs import make_glyphs
from stn_cifar.stn import build_model
from stn_cifar.training import evaluate, fit

REPOSITORY = Path(__file__).parents[1]


def config(**fields):
    plain = {"device": "cpu", "precision": "fp32", "epochs": 2, "dataset": "glyphs"}
    return Config.preset("tutorial", **{**plain, **fields})


@pytest.fixture(scope="module")
def run(glyph_data):
    """A run of two epochs: (config, model, history, record)."""
    model = build_model(config())
    history = fit(model, glyph_data, config())
    return config(), model, history, study.record(config(), glyph_data, model, history)


def fake(accuracy=0.5, train=0.6, seconds=(1.0, 3.0), precision="fp32", **fields):
    """A record as `results_table` reads it, of a run that never was."""
    history = [dict(epoch=k + 1, seconds=s, precision=precision) for k, s in enumerate(seconds)]
    return dict(config=config(epochs=len(history), **fields).to_dict(), dataset="CIFAR-10", parameters=39_884,
                finished=True, epochs_done=len(history), history=history, machine="2 CPU cores, a chip",
                test=dict(accuracy=accuracy), train=dict(accuracy=train),
                theta=dict(grid_scale=dict(mean=1.25, std=0.05)))


# ---- the record -----------------------------------------------------------------------------------------------------


def test_a_record_holds_all_of_a_run_as_plain_json(run):
    config, _, history, record = run
    assert set(record) == {"config", "dataset", "parameters", "finished", "epochs_done", "training_seconds", "test",
                           "train", "theta", "history", "machine", "precision", "versions", "date", "pose_recovery"}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert Config(**record["config"]) == config and record["history"] == history
    assert record["dataset"] == "glyphs" and record["parameters"] == 39_884
    assert record["finished"] is True and record["epochs_done"] == 2
    assert record["training_seconds"] == sum(row["seconds"] for row in history) > 0
    assert {"python", "torch", "numpy", "torchvision", "matplotlib"} <= set(record["versions"])
    assert record["versions"]["torch"] == torch.__version__ and "CPU core" in record["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])


def test_a_record_tells_what_was_measured_at_the_end(run, glyph_data):
    _, model, _, record = run
    test, train = evaluate(model, glyph_data.test), evaluate(model, glyph_data.train)
    assert record["test"] == dict(accuracy=test.accuracy, loss=test.loss, images=130,
                                  confusion=test.confusion.tolist())
    assert record["train"] == dict(accuracy=train.accuracy, loss=train.loss, images=203)
    assert {"rotation", "scale", "outside"} <= set(record["theta"])
    assert set(record["pose_recovery"]) >= {"median_angle", "within_15", "within_30"}


def test_a_run_that_was_stopped_is_not_called_finished(run, glyph_data):
    config, model, history, _ = run
    for epochs, done in ((3, history), (2, history[:1]), (2, [])):
        record = study.record(config.replace(epochs=epochs), glyph_data, model, done)
        assert record["finished"] is False and record["epochs_done"] == len(done)


TAUGHT = dict(model="light", transform="rotation", pose_cells=36, pose_weight=1.0)


@pytest.mark.parametrize("fields", [dict(transform="tps"), dict(stn=False), dict(distortion="elastic"),
                                    dict(distortion="rts"), dict(transform="projective"), TAUGHT,
                                    dict(distortion="rotation", stn=False, transform="tps"),
                                    dict(TAUGHT, distortion="rotation", quarter_turns="localization")])
def test_every_kind_of_run_gets_a_record(glyph_data, fields):
    test = glyph_data.test
    if "distortion" in fields:
        test = Split(test.images, test.labels, distortions.suite(test.images, fields["distortion"])[1])
    data = Data(glyph_data.train, None, test, glyph_data.classes, "glyphs")
    record = study.record(config(**fields), data, build_model(config(**fields)), [])
    json.dumps(record, allow_nan=False)
    # poses are weighed, or pictures turned all the way round where they come so
    assert ("test_hypotheses" in record) == ("pose_cells" in fields or fields.get("distortion") == "rotation")
    spline = "tps" in fields.values() or "elastic" in fields.values()  # of which no pose can be read
    assert ("pose_recovery" in record) == (not spline)
    no_pose = Data(glyph_data.train, None, Split(test.images, test.labels), glyph_data.classes, "glyphs")
    assert "pose_recovery" not in study.record(config(**fields), no_pose, build_model(config(**fields)), [])


def test_run_is_load_build_fit_and_record(glyph_data, monkeypatch):
    monkeypatch.setattr(study, "load_data", lambda config: glyph_data)
    model, data, record = study.run(config(seed=5))
    expected = build_model(config(seed=5))
    fit(expected, glyph_data, config(seed=5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert data is glyph_data and record["test"]["loss"] == evaluate(expected, glyph_data.test).loss


# ---- files ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_again(run, tmp_path):
    record = run[-1]
    folder = tmp_path / "not" / "there"
    path = study.save(record, folder)
    assert path == folder / f"{study.label(run[0], 'glyphs')}.json"
    assert json.loads(path.read_text()) == record and study.load_results(folder) == [record]
    assert list(folder.iterdir()) == [path]  # nothing temporary


def test_unfinished_runs_are_not_loaded(tmp_path):
    study.save(fake(seed=1), tmp_path)
    study.save(fake(seed=2) | dict(finished=False), tmp_path)
    study.save(fake(seed=0), tmp_path)
    assert [record["config"]["seed"] for record in study.load_results(tmp_path)] == [0, 1]
    assert study.load_results(tmp_path / "nothing") == []


def test_a_record_that_is_no_json_harms_none_that_is_there(tmp_path):
    path = study.save(fake(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        study.save(fake(accuracy=math.nan), tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_label_names_what_differs_from_the_preset_and_the_seed():
    plain = Config.preset("tutorial", device="cpu")
    assert study.label(plain, "CIFAR-10") == "tutorial-cifar10-seed0"
    assert study.label(plain.replace(seed=3), "glyphs") == "tutorial-glyphs-seed3"
    changed = plain.replace(epochs=2, transform="tps", stn=False, output_size=20)
    assert study.label(changed, "CIFAR-10") == "tutorial-cifar10-transform=tps-stn=False-output_size=20-epochs=2-seed0"
    elsewhere = plain.replace(data_root="/data", dataset="cifar10")  # where the data lies makes no other run
    assert study.label(elsewhere, "CIFAR-10") == "tutorial-cifar10-seed0"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_as_it_is_has_no_more_than_its_name_in_its_label(name):
    assert study.label(Config.preset(name, device="cpu"), "CIFAR-10") == f"{name}-cifar10-seed0"


def test_a_label_is_never_too_long_for_a_file_name_and_one_too_long_still_tells_experiments_apart():
    fields = {key: value for key, value in Config.preset("taught").to_dict().items() if key not in ("name", "seed")}
    changed = Config.preset("tutorial", **fields | dict(device="cpu"))
    configs = [changed, changed.replace(epochs=9), changed.replace(flip=False), changed.replace(seed=1)]
    labels = [study.label(config, "CIFAR-10") for config in configs]
    assert len(set(labels)) == 4 and labels[0].endswith("-seed0") and labels[3].endswith("-seed1")
    assert all(len(f"{label}-robustness.png") < 255 for label in labels)
    assert all(len("-".join(study.changed_fields(config))) > 231 for config in configs)  # or it would be no trial


def test_a_whole_number_makes_no_other_experiment():
    assert study.label(Config.preset("compact", width=2), "x") == study.label(Config.preset("compact", width=2.0), "x")


def test_different_experiments_have_different_labels():
    other = dict(transform="tps", stn=False, epochs=3, batch_size=65, learning_rate=0.02, localization_lr_scale=0.5,
                 momentum=0.9, weight_decay=1e-4, iterations=2, padding_mode="border", interpolation="bicubic",
                 supersample=2, val_size=5000, distortion="rts", outside_weight=1.0, identity_weight=1.0,
                 scale_weight=1.0, max_scale=2.0, pose_weight=1.0, seed=1, output_size=20, precision="bf16")
    plain = Config.preset("tutorial", device="cpu")
    labels = [study.label(plain.replace(**{key: value}), "CIFAR-10") for key, value in other.items()]
    assert len({*labels, study.label(plain, "CIFAR-10"), study.label(plain, "glyphs")}) == len(other) + 2


# ---- README's table -------------------------------------------------------------------------------------------------


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_tells_the_numbers_of_the_records():
    tests, trains = [0.5712, 0.5834, 0.5650], [0.6, 0.62, 0.61]
    records = [fake(a, t, (1.0, 2.0, 9.0), seed=k) for k, (a, t) in enumerate(zip(tests, trains, strict=True))]
    records.append(fake(0.123, 0.456, (4.0,), transform="rotation"))
    head, line, *rows = tables.results_table(records).splitlines()
    assert len({row.count("|") for row in (head, line, *rows)}) == 1 and len(rows) == 2
    three, one = (dict(zip(cells(head), cells(row), strict=True)) for row in rows)
    assert three["preset"] == "tutorial, epochs=3, precision=fp32"
    assert three["data"] == "CIFAR-10" and three["parameters"] == "39,884" and three["epochs"] == "3"
    assert three["test accuracy"] == f"{100 * np.mean(tests):.1f} ± {100 * np.std(tests, ddof=1):.1f} %"
    assert three["training accuracy"] == f"{100 * np.mean(trains):.1f} ± {100 * np.std(trains, ddof=1):.1f} %"
    assert three["s an epoch"] == f"{statistics.median([1, 2, 9]):.1f}"  # of all epochs: a slow first one aside
    assert three["arithmetic"] == "fp32" and three["n"] == "3" and three["machine"] == "2 CPU cores, a chip"
    assert one["test accuracy"] == "12.3 %" and one["training accuracy"] == "45.6 %"
    assert one["n"] == "1 (one run)" and "rotation" in one["preset"]


def test_what_differs_by_more_than_the_seed_is_not_averaged():
    records = [fake(seed=0), fake(seed=1), fake(stn=False), fake(seed=0) | dict(dataset="glyphs")]
    rows = tables.results_table(records).splitlines()[2:]
    assert [cells(row)[-2] for row in rows] == ["2", "1 (one run)", "1 (one run)"]


def test_another_machine_or_arithmetic_is_another_row():
    records = [fake(seed=0), fake(seed=1) | dict(machine="a card"), fake(seed=0, precision="bf16")]
    rows = tables.results_table(records).splitlines()[2:]
    assert [cells(row)[-3:] for row in rows] == [["fp32", "1 (one run)", "2 CPU cores, a chip"],
                                                 ["fp32", "1 (one run)", "a card"],
                                                 ["bf16", "1 (one run)", "2 CPU cores, a chip"]]


def test_pose_recovery_has_columns_where_a_run_has_it():
    known = [fake(seed=k, name="glyphs") | dict(pose_recovery=dict(median_angle=angle, within_30=0.9))
             for k, angle in enumerate((7.0, 9.0))]
    head, _, posed, other = tables.results_table([*known, fake()]).splitlines()
    assert dict(zip(cells(head), cells(posed), strict=True))["angle left, median"] == "8.0 ± 1.4°"
    assert dict(zip(cells(head), cells(other), strict=True))["within 30°"] == "-"
    assert "angle left" not in tables.results_table([fake()])


def test_a_run_on_a_gpu_is_told_of_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    record = fake()
    record["config"]["device"] = "cuda"
    assert len(tables.results_table([record]).splitlines()) == 3


def test_a_table_of_nothing_is_its_head():
    assert len(tables.results_table([]).splitlines()) == 2


@pytest.fixture
def report(tmp_path):
    """Paths of a README with markers, a folder with two records, and a notebook without an address."""
    readme, results, notebook = tmp_path / "README.md", tmp_path / "results", tmp_path / "notebook.ipynb"
    readme.write_text("before <!-- colab: python -m stn_cifar report -->OLD LINK<!-- end of colab --> between\n"
                      "<!-- results: python -m stn_cifar report -->\nOLD TABLE\n<!-- end of results -->\nafter ±\n",
                      encoding="utf-8")
    settings(notebook, "")
    for seed, accuracy in enumerate((0.57, 0.59)):
        study.save(fake(accuracy, seed=seed), results)
    return readme, results, notebook


def settings(notebook, address, ref=""):
    source = ["PRESET = 'tutorial'\n", f'REPO_URL = "{address}"  #@param\n', f'REF = "{ref}"  #@param\n']
    cells = [dict(cell_type="code", metadata={}, source=['REPO_URL = "https://wrong"']),
             dict(cell_type="code", metadata=dict(tags=["parameters"]), source=source)]
    notebook.write_text(json.dumps(dict(cells=cells)))


def test_report_replaces_what_is_between_the_markers_and_nothing_else(report):
    readme, results, _ = report
    tables.write_report(*report)
    text = readme.read_text(encoding="utf-8")
    assert "OLD" not in text and tables.results_table(study.load_results(results)) in text and "58.0 ± 1.4 %" in text
    assert text.startswith("before <!-- colab: python -m stn_cifar report -->")
    assert "<!-- end of colab --> between\n<!-- results: python -m stn_cifar report -->\n|" in text
    assert text.endswith("|\n<!-- end of results -->\nafter ±\n")
    tables.write_report(*report)  # twice is as once
    assert readme.read_text(encoding="utf-8") == text


def test_report_links_to_colab_where_the_notebook_names_an_address(report):
    readme, _, notebook = report
    tables.write_report(*report)
    assert "not set yet" in readme.read_text(encoding="utf-8")
    for ref, branch in (("", "main"), ("v1", "v1")):
        settings(notebook, "https://github.com/someone/something.git", ref)
        tables.write_report(*report)
        link = f"https://colab.research.google.com/github/someone/something/blob/{branch}/notebooks/stn_cifar10.ipynb"
        assert f"({link})" in readme.read_text(encoding="utf-8")
    notebook.write_text(json.dumps(dict(cells=[])))
    with pytest.raises(ValueError, match=r"^notebook: .*REPO_URL"):
        tables.write_report(*report)


@pytest.mark.parametrize("marker", ["<!-- results: python -m stn_cifar report -->", "<!-- end of results -->",
                                    "<!-- colab: python -m stn_cifar report -->", "<!-- end of colab -->"])
def test_report_without_a_marker_changes_nothing_and_says_so(report, marker, capsys):
    readme, results, notebook = report
    readme.write_text(readme.read_text(encoding="utf-8").replace(marker, ""), encoding="utf-8")
    before = readme.read_bytes()
    with pytest.raises(ValueError, match=r"^readme: .*README\.md lacks the markers") as error:
        tables.write_report(*report)
    assert marker in str(error.value) and readme.read_bytes() == before
    assert main(["report", "--readme", str(readme), "--results", str(results), "--notebook", str(notebook)]) == 2
    assert capsys.readouterr().err.startswith("error: readme: ")


def test_report_puts_the_pictures_of_the_notebooks_texts_into_it(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "notebooks").mkdir()
    content, notebook = b"\x89PNG some picture", tmp_path / "notebooks" / "n.ipynb"
    picture = tmp_path / "images" / "a.png"
    picture.write_bytes(content)
    text = '# Title\n\n![What it shows (a cat).](../images/a.png "images/a.png") and ![other](b.png)\n'
    cells = [dict(cell_type="markdown", metadata={}, source=text.splitlines(keepends=True)),
             dict(cell_type="code", metadata={}, source=["x = '![code](../images/a.png \"images/a.png\")'"])]
    notebook.write_text(json.dumps(dict(cells=cells)))
    tables.embed_pictures(notebook)
    markdown, code = json.loads(notebook.read_text())["cells"]
    uri = re.search(r"!\[What it shows \(a cat\)\.\]\(data:image/png;base64,(\S+) \"images/a.png\"\) and "
                    r"!\[other\]\(b.png\)", "".join(markdown["source"]))[1]
    assert base64.b64decode(uri) == content and code == cells[1]
    picture.write_bytes(content * 2)  # drawn anew
    tables.embed_pictures(notebook)
    uri = re.search(r"base64,(\S+)", "".join(json.loads(notebook.read_text())["cells"][0]["source"]))[1]
    assert base64.b64decode(uri) == content * 2


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def few_glyphs(monkeypatch):
    monkeypatch.setattr(data_module, "make_glyphs", lambda count, seed: make_glyphs(count // 250, seed))


@pytest.fixture
def no_training(monkeypatch):
    """The configs that `train` would have run."""
    configs = []

    def run(config, checkpoint_dir=None, watch=None):
        configs.append(config)
        raise ValueError("stopped here")

    monkeypatch.setattr(study, "run", run)
    return configs


def train(tmp_path, *more):
    return main(["train", "--results", str(tmp_path / "r"), "--images", str(tmp_path / "i"), "--device", "cpu", *more])


def test_train_writes_record_and_figures_and_says_where(few_glyphs, tmp_path, capsys):
    assert train(tmp_path, "--dataset", "glyphs", "--epochs", "1", "--precision", "fp32", "--transform",
                 "rotation") == 0
    path, = (tmp_path / "r").iterdir()
    record = json.loads(path.read_text())
    assert record["finished"] and record["config"]["epochs"] == 1 and record["config"]["transform"] == "rotation"
    assert record["test"]["images"] == 40 and record["dataset"] == "glyphs"
    pictures = sorted((tmp_path / "i").iterdir())
    assert {picture.stem.rpartition("-")[2] for picture in pictures} == {
        "strip", "pairs", "where", "curves", "theta", "bands", "means", "confusion", "mistakes", "robustness", "film"}
    for picture in pictures:
        assert picture.name.startswith(path.stem)
        assert picture.read_bytes().startswith(b"GIF89a" if picture.suffix == ".gif" else b"\x89PNG")
    out, err = capsys.readouterr()
    assert f"test accuracy {record['test']['accuracy']:.1%} on 40 images of glyphs" in out
    assert str(path) in out and err == ""


def test_trained_already_it_leaves_the_film_that_is_there(few_glyphs, tmp_path, capsys):
    given = ("--dataset", "glyphs", "--epochs", "2", "--precision", "fp32", "--checkpoint-dir", str(tmp_path / "kept"))
    assert train(tmp_path, *given) == 0
    pictures = {picture: picture.read_bytes() for picture in (tmp_path / "i").iterdir()}
    assert "and -film.gif" in capsys.readouterr().out
    assert train(tmp_path, *given) == 0
    assert pictures == {picture: picture.read_bytes() for picture in (tmp_path / "i").iterdir()}
    assert "no film, as all epochs were there already" in capsys.readouterr().out


def test_every_field_of_config_is_an_option(no_training, tmp_path):
    other = {bool: lambda value: not value, int: lambda value: 5, float: lambda value: 1.25, str: lambda value: "x"}
    special = dict(device="cpu", model="light", shared_layers=2, pose_cells=36, pose_curriculum=0.25, iterations=2,
                   output_size=32, supersample=3, momentum=0.5, max_scale=1.75, warmup=0.25, label_smoothing=0.25,
                   pose_head=False)  # goes with no guard rail
    arguments, expected, plain = [], {}, Config.preset("tutorial", device="cpu")
    for field in dataclasses.fields(Config):
        if field.name == "name":
            continue
        kind = next(kind for kind in other if kind.__name__ in str(field.type))
        now = getattr(plain, field.name)
        value = special.get(field.name, other[kind](now))
        if field.metadata["choices"] and field.name not in special:
            value = next((choice for choice in field.metadata["choices"] if choice not in (now, "cuda")), now)
        expected[field.name] = value
        flag = "--" + field.name.replace("_", "-")
        arguments += [flag if value else flag.replace("--", "--no-")] if kind is bool else [flag, str(value)]
    expected["image_size"] = 32  # goes with output_size and iterations
    arguments[arguments.index("--image-size") + 1] = "32"
    assert train(tmp_path, *arguments) == 2
    assert no_training == [plain.replace(**expected)]
    changed = [key for key, value in expected.items() if value != getattr(plain, key)]
    assert len(changed) >= len(expected) - 4  # model and image_size have one value here, device was given


def test_without_options_the_preset_is_run(no_training, tmp_path):
    assert train(tmp_path) == 2
    assert train(tmp_path, "--preset", "tutorial", "--no-stn") == 2
    assert no_training == [Config.preset("tutorial", device="cpu"), Config.preset("tutorial", device="cpu", stn=False)]


def test_help_explains_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        if field.name != "name":
            assert "--" + field.name.replace("_", "-") in text
            assert field.metadata["help"] in text
    assert all(name in text for name in PRESETS) and "examples:" in text
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "train" in text and "report" in text


@pytest.mark.parametrize("arguments", [["--epochs", "1.5"], ["--epochs", "many"], ["--no-such-flag"], ["--seed"],
                                       ["--stn", "yes"]])
def test_a_bad_flag_ends_with_2_and_its_name(no_training, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        train(tmp_path, *arguments)
    assert end.value.code == 2 and no_training == []
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last and (arguments[0] in last or arguments[-1] in last)
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--epochs", "0"], "epochs: 0 is out of range"), (["--epochs", "-1"], "epochs: -1 is out of range"),
    (["--batch-size", "0"], "batch_size: 0"), (["--learning-rate", "nan"], "learning_rate: nan"),
    (["--transform", "afine"], "transform: 'afine' is unknown"), (["--dataset", "mnist"], "dataset: 'mnist'"),
    (["--device", "gpu"], "device: 'gpu'"), (["--preset", "tutorail"], "did you mean 'tutorial'"),
    (["--iterations", "2", "--transform", "tps"], "iterations: ")])
def test_a_bad_value_ends_with_2_and_one_line(no_training, tmp_path, capsys, arguments, message):
    assert train(tmp_path, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and message in err and err.count("\n") == 1 and out == ""
    assert no_training == [] and list(tmp_path.iterdir()) == []  # nor are folders made for it


@pytest.mark.parametrize("which", ["--results", "--images"])
def test_a_folder_that_cannot_be_written_is_told_before_training(no_training, tmp_path, capsys, which):
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert train(tmp_path, which, str(place)) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {place}: cannot be written to") and err.count("\n") == 1
    assert no_training == []
    assert train(tmp_path, which, str(tmp_path / "new" / "folder")) == 2 and len(no_training) == 1
    assert list((tmp_path / "new" / "folder").iterdir()) == []  # the attempt leaves nothing


@pytest.mark.parametrize("error", [data_module.DataError("no data"), OSError("disk full"),
                                   command_line.NonFiniteLoss("the loss became nan"), MemoryError("batch_size: 9")])
def test_expected_failures_are_one_line_and_no_traceback(monkeypatch, tmp_path, capsys, error):
    def fail(config, checkpoint_dir=None, watch=None):
        raise error

    monkeypatch.setattr(study, "run", fail)
    assert train(tmp_path) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_unforeseen_failure_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "run", lambda *args, **kwargs: [][0])
    with pytest.raises(IndexError):
        train(tmp_path)


def test_report_writes_the_readme(report, capsys):
    readme, results, notebook = report
    assert main(["report", "--readme", str(readme), "--results", str(results), "--notebook", str(notebook)]) == 0
    assert "58.0 ± 1.4 %" in readme.read_text(encoding="utf-8") and str(readme) in capsys.readouterr().out
    readme.unlink()
    assert main(["report", "--readme", str(readme), "--results", str(results), "--notebook", str(notebook)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and str(readme) in err


def test_figures_draws_the_families(few_glyphs, tmp_path, capsys):
    assert main(["figures", "--dataset", "glyphs", "--images", str(tmp_path)]) == 0
    assert (tmp_path / "transform_families.png").read_bytes().startswith(b"\x89PNG")
    assert "transform_families.png" in capsys.readouterr().out


def test_the_module_runs_as_a_command(tmp_path):
    done = subprocess.run([sys.executable, "-W", "error", "-m", "stn_cifar", "train", "--epochs", "0"], cwd=REPOSITORY,
                          text=True, capture_output=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: epochs: 0 is out of range; must be >= 1\n"
