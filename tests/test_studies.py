"""Studies: arms, budgets and seeds as data; what is run, and what is there already."""

import ast
import threading
import time
from pathlib import Path

import made_up
import pytest
import torch

from experiments import records, run, tables
from experiments.__main__ import main
from experiments.studies import STUDIES
from experiments.study import Study
from stn_cifar import Config, Data, Split, build_model, presets

ROOT = Path(__file__).resolve().parents[1]


# ---- the definitions -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_an_experiment_and_a_file_of_its_own(name):
    this = STUDIES[name]
    runs = this.runs()
    configs = [this.config(*run) for run in runs]  # checks them
    places = {records.place(Path("results"), name, arm, config.to_dict())
              for (arm, _, _), config in zip(runs, configs, strict=True)}
    experiments = {(records.identity(config.to_dict()), config.seed) for config in configs}
    assert len(places) == len(experiments) == len(runs) >= len(this.arms) * this.seeds
    assert max(len(path.as_posix()) for path in places) < 110  # and 10 for a digest
    assert set(this.controls) <= set(this.arms)


@pytest.mark.parametrize("name", STUDIES)
def test_arms_see_the_same_images_and_no_choice_is_made_on_test_images(name):
    this = STUDIES[name]
    configs = {run: this.config(*run) for run in this.runs()}
    assert all(bool(config.val_size) == this.choice for config in configs.values())
    # arms are compared where a control has their budget
    budgets = {epochs for arm, epochs, _ in configs if arm in this.controls}
    compared = {run: config for run, config in configs.items() if config.epochs in budgets
                and (config.distortion != "disc" or config.stn)}  # upright ceilings are not
    assert all(set(this.arms[arm]).isdisjoint(this.common) for arm, _, _ in compared)
    for field in ("dataset", "distortion", "val_size"):
        values = {getattr(config, field) for config in compared.values()}
        assert len(values) == bool(this.controls)
    # never glyphs for want of CIFAR-10
    assert all(config.dataset != "auto" for config in configs.values())


def test_an_arms_seeds_follow_one_another_and_it_may_restrict_its_budgets():
    arms = {"a": {}, "b": dict(stn=False, epochs=(5,))}
    this = Study("?", "tutorial", arms, epochs=(2, 5), seeds=2)
    assert this.runs() == [("a", 2, 0), ("a", 2, 1), ("a", 5, 0), ("a", 5, 1), ("b", 5, 0),
                           ("b", 5, 1)]
    assert this.runs(epochs=1) == [("a", 1, 0), ("a", 1, 1), ("b", 1, 0), ("b", 1, 1)]
    assert this.config("b", 5, 1) == Config.preset("tutorial", dataset="cifar10", stn=False,
                                                   epochs=5, seed=1)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
def test_shards_share_all_runs_out_without_overlap(number):
    this = STUDIES["rotation"]
    shards = [this.runs(f"{k}/{number}") for k in range(1, number + 1)]
    assert sorted(run for shard in shards for run in shard) == sorted(this.runs())
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_told(shard):
    with pytest.raises(ValueError, match=r"^shard: .*must be k/n"):
        STUDIES["ladder"].runs(shard)


def test_an_unknown_study_is_told_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"study: 'ladr' is unknown; must be one of rotation, "):
        run.run_study("ladr", tmp_path)


# ---- running -------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """A study `small` that never trains: (config, checkpoint folder) of what was run, in order."""
    monkeypatch.setitem(STUDIES, "small", made_up.SMALL)
    monkeypatch.setattr(run, "resolve", lambda precision, device: "fp32")
    done = []

    def fake(config, folder):
        done.append((config, folder))
        arm = "with" if config.stn else "without"
        made = made_up.record(arm=arm, epochs=config.epochs, seed=config.seed)
        return None, None, made | dict(study=None, arm=None, config=config.to_dict())

    monkeypatch.setattr(run.experiment, "run", fake)
    return done


def told(ran):
    return [(config.stn, config.epochs, config.seed) for config, _ in ran]


def test_a_study_runs_what_is_missing_and_goes_on_where_it_stopped(ran, tmp_path, capsys):
    assert run.run_study("small", tmp_path) is True
    assert told(ran) == [(stn, 2, seed) for stn in (True, False) for seed in (0, 1, 2)]
    found = records.load(tmp_path)["small"]
    assert [(r["study"], r["arm"], r["seed"]) for r in found] == [
        ("small", arm, seed) for arm in ("with", "without") for seed in (0, 1, 2)]
    files = sorted((tmp_path / "small").iterdir())
    assert [path.name for path in files[:1]] == ["with-2e-s0.json"] and len(files) == 6
    files[3].unlink()
    files[0].rename(files[0].with_name("under-another-name.json"))
    ran.clear()
    run.run_study("small", tmp_path)
    assert told(ran) == [(False, 2, 0)]
    assert capsys.readouterr().out.count("there already") == 5
    ran.clear()
    run.run_study("small", tmp_path, epochs=1, shard="2/3")  # another budget is another run
    assert told(ran) == [(True, 1, 1), (False, 1, 1)]


def test_after_a_preset_is_edited_no_run_is_skipped_or_repeated_wrongly(ran, tmp_path,
                                                                        monkeypatch):
    run.run_study("small", tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    old = dict(presets.PRESETS["tutorial"])
    monkeypatch.setitem(presets.PRESETS, "tutorial", old | dict(learning_rate=0.123))
    ran.clear()
    run.run_study("small", tmp_path)  # another experiment: run, beside the records that are there
    assert len(ran) == 6 and all(config.learning_rate == 0.123 for config, _ in ran)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list((tmp_path / "small").iterdir())) == 12
    ran.clear()
    run.run_study("small", tmp_path)
    monkeypatch.setitem(presets.PRESETS, "tutorial", old)  # and back
    run.run_study("small", tmp_path)
    assert ran == []


def test_a_damaged_record_is_told_does_not_count_and_is_made_anew(ran, tmp_path, capsys):
    run.run_study("small", tmp_path)
    empty, cut = tmp_path / "small" / "with-2e-s1.json", tmp_path / "small" / "without-2e-s2.json"
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:100])
    ran.clear()
    run.run_study("small", tmp_path)
    assert told(ran) == [(True, 2, 1), (False, 2, 2)]
    out = capsys.readouterr().out
    assert f"note: {empty}: is no record" in out and f"note: {cut}: is no record" in out
    assert len(records.load(tmp_path)["small"]) == 6


def test_each_run_keeps_its_checkpoints_in_a_folder_of_its_own(ran, tmp_path):
    run.run_study("small", tmp_path, checkpoint_dir=tmp_path / "kept")
    assert {folder.relative_to(tmp_path / "kept").as_posix() for _, folder in ran} == {
        f"small/{arm}-2e-s{seed}" for arm in ("with", "without") for seed in (0, 1, 2)}


def test_a_study_that_somebody_stops_is_stopped_whole(ran, tmp_path, monkeypatch, capsys):
    fake = run.experiment.run

    def stopped(config, folder):
        model, data, record = fake(config, folder)
        return model, data, record | dict(finished=False, epochs_done=1)

    monkeypatch.setattr(run.experiment, "run", stopped)
    assert run.run_study("small", tmp_path, checkpoint_dir=tmp_path / "kept") is False
    assert len(ran) == 1 and not list((tmp_path / "small").glob("*.json"))
    assert "stopped after 1 of 2 epochs; the same command goes on from" in capsys.readouterr().out


def test_a_record_is_kept_before_anything_that_may_fail(ran, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run, "more_tests", fail)
    with pytest.raises(RuntimeError):
        run.run_study("small", tmp_path)
    assert len(records.load(tmp_path)["small"]) == 1
    assert not list((tmp_path / "small").glob(".*"))  # nor is it claimed any more


def test_two_at_once_share_the_runs(ran, tmp_path, monkeypatch):
    fake = run.experiment.run
    monkeypatch.setattr(run.experiment, "run", lambda *given: time.sleep(0.05) or fake(*given))
    start = threading.Barrier(4)

    def study():
        start.wait()
        run.run_study("small", tmp_path)

    threads = [threading.Thread(target=study) for _ in range(4)]  # locks keep threads apart too
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told(ran)) == sorted(
        (stn, 2, seed) for stn in (True, False) for seed in range(3))
    assert len(records.load(tmp_path)["small"]) == 6


def test_a_studys_models_are_tested_on_suites_and_against_the_angle(monkeypatch, photos):
    asked, upright = [], Split(photos, torch.arange(6))
    data = Data(upright, test=upright, classes=tuple("abcdefghij"), name="CIFAR-10")
    monkeypatch.setattr(run, "load_data", lambda config: asked.append(config) or data)
    config = Config.preset("taught", device="cpu")
    this = Study("?", "taught", {"one": {}}, suites=("rotation45", "rts"), angles=(-90, 0, 90))
    more = run.more_tests(this, build_model(config), config)
    assert [config.distortion for config in asked] == [None]  # turned once, by the study
    assert list(more["suites"]) == ["rotation45", "rts"]
    assert all(0 <= value <= 1 for value in more["suites"].values())
    assert more["against"]["angle"]["values"] == [-90, 0, 90]
    assert len(more["against"]["angle"]["accuracy"]) == 3
    assert set(more["invariance"]) == {"45", "90"}
    assert run.more_tests(Study("?", "taught", {"one": {}}), None, config) == {}


def test_a_p4_networks_logits_stay_as_they_are_at_quarter_turns_only(photos):
    changes = {}
    for name in ("p4", "light"):
        config = Config.preset("taught", device="cpu", stn=False, model=name, width=0.5)
        model = build_model(config)
        changes[name] = {angle: run.invariance(model, photos, angle) for angle in (0, 45, 90)}
    assert changes["p4"][0]["logits"] == 0
    assert changes["p4"][90]["logits"] < 1e-4 and changes["p4"][90]["changed"] == 0
    # the negative controls
    assert changes["p4"][45]["logits"] > 0.01 and changes["light"][90]["logits"] > 0.01


def test_what_a_run_leaves_is_what_tables_read(tmp_path, monkeypatch, glyph_data):
    this = Study("?", "taught", {
        "STN": dict(width=0.5, localization_width=0.5), "CNN": dict(stn=False, width=0.5)},
        common=dict(dataset="glyphs", distortion=None, flip=False, precision="fp32",
                    device="cpu"),
        epochs=(1,), seeds=1)
    monkeypatch.setitem(STUDIES, "real", this)
    monkeypatch.setattr(run.experiment, "load_data", lambda config: glyph_data)
    assert run.run_study("real", tmp_path)
    found = records.load(tmp_path)["real"]
    cells = {row.arm: tables.cells_of(this, row) for row in tables.rows_of(this, found)}
    told = ("parameters", "MFLOP", "test accuracy", "training accuracy", "s an epoch")
    assert all(cells[arm][name] != "-" for arm in cells for name in told)
    for name in ("rotation error, median", "rotation error, mean", "within 5°", "within 22.5°",
                 "within 30°", "top-2 poses", "true pose (oracle)"):
        assert cells["STN"][name] != "-", name
    assert cells["CNN"]["2 rotated views"] != "-" == cells["CNN"]["within 30°"]
    monkeypatch.setattr(run.experiment, "run", None)
    assert run.run_study("real", tmp_path)  # all there already


def test_the_command_line_runs_a_study_and_its_status_tells_of_a_stop(ran, tmp_path, monkeypatch,
                                                                      capsys):
    from stn_cifar.__main__ import main
    place = ["--results", str(tmp_path)]
    assert main(["study", "small", *place, "--shard", "2/3", "--epochs", "1"]) == 0
    assert told(ran) == [(True, 1, 1), (False, 1, 1)]
    assert main(["study", "smal", *place]) == 2
    assert "study: 'smal' is unknown" in capsys.readouterr().err
    assert main(["study", "small", *place, "--shard", "5/3"]) == 2
    fake = run.experiment.run
    monkeypatch.setattr(run.experiment, "run", lambda *given: (
        None, None, fake(*given)[2] | dict(finished=False)))
    assert main(["study", "small", *place]) == 130


def test_the_library_knows_nothing_of_the_experiments():
    for path in (ROOT / "stn_cifar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            assert not any(name.split(".")[0] == "experiments" for name in names), path


@pytest.mark.parametrize("said, asked, expected", [
    (None, [], 1), ("2", [], 2), (None, ["--cpus", "3"], 3)])
def test_a_run_has_one_thread_if_nothing_else_is_said(monkeypatch, tmp_path, said, asked, expected):
    seen, before = [], torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr("experiments.__main__.run_study",
                        lambda *args, **kwargs: seen.append(torch.get_num_threads()) or True)
    try:
        torch.set_num_threads(2)
        command = ["study", "precision", "--results", str(tmp_path)]
        assert main([*command, *asked]) == 0 and seen == [expected]
        with pytest.raises(ValueError, match=r"^cpus: 0; must be at least 1"):
            main([*command, "--cpus", "0"])
    finally:
        torch.set_num_threads(before)


def test_a_run_that_was_ended_before_its_further_tests_is_made_again(tmp_path, monkeypatch):
    made, this = [], Study("?", "tutorial", {"one": dict(device="cpu")}, epochs=(1,), seeds=1,
                           common=dict(precision="fp32"), angles=(0, 90))

    def experiment(config, folder):
        made.append(config)
        return None, None, made_up.record(this, "one", 1)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setitem(STUDIES, "ended", this)
    monkeypatch.setattr(run.experiment, "run", experiment)
    monkeypatch.setattr(run, "more_tests", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run_study("ended", tmp_path)
    assert len(list(tmp_path.glob("ended/*.json"))) == 1  # what was measured is kept
    monkeypatch.setattr(run, "more_tests", lambda *args: dict(against={}))
    for _ in range(2):
        assert run.run_study("ended", tmp_path)
    assert len(made) == 2  # and then it is there
    path, = tmp_path.glob("ended/*.json")
    assert "against" in records.read(path)
