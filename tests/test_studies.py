"""Studies: arms and seeds as data, what is run and what is skipped, and the tables made of it."""

import math
import statistics

import pytest
import torch
from scipy import stats

from stn_cifar import report, studies, study
from stn_cifar.__main__ import main
from stn_cifar.config import Config
from stn_cifar.studies import STUDIES, Study


class Runs(list):
    """The configs that were run, in their order, and where each was to keep its checkpoints."""

    def __init__(self):
        self.kept = []


@pytest.fixture
def small(monkeypatch):
    """A study of two arms and three seeds that never trains: the configs that were run, in their order."""
    this = Study("Does it pay?", "tutorial", {"with": {}, "without": dict(stn=False)}, common=dict(epochs=2), seeds=3)
    monkeypatch.setitem(STUDIES, "small", this)
    done = Runs()
    kept = done.kept

    def run(config, checkpoint_dir):
        done.append(config)
        kept.append(checkpoint_dir)
        return None, None, made_up(config)

    monkeypatch.setattr(study, "run", run)
    return done


def made_up(config, accuracy=0.5, finished=True):
    """A record as a run would leave it."""
    rows = [dict(epoch=k + 1, seconds=2.0, precision="fp32", val_accuracy=accuracy - 0.1) for k in range(config.epochs)]
    return dict(config=config.to_dict(), dataset="CIFAR-10", parameters=1234, finished=finished,
                epochs_done=len(rows), history=rows, machine="2 CPU cores, a chip", test=dict(accuracy=accuracy),
                train=dict(accuracy=0.9), theta={key: dict(mean=1.1, std=0.1) for key in ("grid_scale", "moved")})


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_every_study_is_a_valid_experiment_of_its_own(name):
    this = STUDIES[name]
    configs = [this.config(arm, seed) for arm, seed in studies.runs_of(this)]
    labels = {study.label(config, config.dataset) for config in configs}
    assert len(labels) == len(configs) == len(this.arms) * this.seeds  # no two runs share a file
    assert max(map(len, labels)) < 235  # or no file could have the name
    assert all(config.dataset == "cifar10" for config in configs)  # never glyphs where CIFAR-10 is missing
    assert all(bool(config.val_size) == this.choice for config in configs)  # no choice is made on test images


def test_all_arms_of_a_study_see_the_same_pictures_and_no_two_are_the_same_experiment():
    for this in STUDIES.values():
        assert all(set(changes).isdisjoint(this.common) for changes in this.arms.values())  # what is common stays so
        runs = [this.config(arm, seed=1).to_dict() for arm in this.arms]
        for field in ("dataset", "distortion", "val_size", "image_size", "seed"):
            assert len({run[field] for run in runs}) == 1, field
        assert len({str(run) for run in runs}) == len(runs)


def test_a_study_runs_what_is_missing_and_goes_on_where_it_stopped(small, tmp_path, capsys):
    studies.run_study("small", tmp_path)
    assert [(c.stn, c.seed) for c in small] == [(True, 0), (False, 0), (True, 1), (False, 1), (True, 2), (False, 2)]
    assert all(c.epochs == 2 and c.dataset == "cifar10" for c in small)
    files = sorted((tmp_path / "study-small").iterdir())
    assert len(files) == 6
    files[3].unlink()
    studies.run_study("small", tmp_path)
    assert len(small) == 7 and sorted((tmp_path / "study-small").iterdir()) == files
    assert capsys.readouterr().out.count("there already") == 5
    studies.run_study("small", tmp_path, epochs=1)  # other runs than those: all are made, none is overwritten
    assert len(small) == 13 and all(c.epochs == 1 for c in small[7:])


def test_each_run_keeps_its_checkpoints_in_a_folder_of_its_own(small, tmp_path):
    studies.run_study("small", tmp_path, checkpoint_dir=tmp_path / "kept")
    assert len(set(small.kept)) == 6 and {place.parent for place in small.kept} == {tmp_path / "kept"}
    assert {place.name for place in small.kept} == {path.stem for path in (tmp_path / "study-small").iterdir()}
    studies.run_study("small", tmp_path / "other")
    assert small.kept[6:] == [None] * 6


def test_a_studys_models_are_tested_on_suites_and_against_the_angle(monkeypatch, photos):
    from stn_cifar import build_model
    from stn_cifar.data import Data, Split

    upright = Split(photos, torch.arange(6))
    asked = []
    monkeypatch.setattr(studies, "load_data", lambda config: asked.append(config) or Data(
        upright, None, upright, tuple("abcdefghij"), "CIFAR-10"))
    this = Study("?", "taught", {"one": {}}, suites=("rotation45", "rts"), angles=(-90, 0, 90))
    config = Config.preset("taught")
    more = studies.more_tests(this, build_model(config), config)
    assert [c.distortion for c in asked] == [None]  # turned once, by the study, not by the data set too
    assert list(more["suites"]) == ["rotation45", "rts"]
    assert all(0 <= value <= 1 for value in more["suites"].values())
    assert more["against"]["angle"]["values"] == [-90, 0, 90] and len(more["against"]["angle"]["accuracy"]) == 3
    assert studies.more_tests(Study("?", "taught", {"one": {}}), None, config) == {}


def test_a_study_that_somebody_stops_is_stopped_whole(small, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run", lambda config, _: (None, None, made_up(config, finished=False)))
    studies.run_study("small", tmp_path)
    path, = (tmp_path / "study-small").iterdir()
    assert path.stem.endswith("-stopped")  # so that the next call runs it again


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7])
def test_shards_share_all_runs_out_without_overlap(number):
    this = STUDIES["ladder"]
    shards = [studies.runs_of(this, f"{k}/{number}") for k in range(1, number + 1)]
    assert sorted(run for shard in shards for run in shard) == sorted(studies.runs_of(this))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_told(shard):
    with pytest.raises(ValueError, match=r"^shard: .*must be k/n"):
        studies.runs_of(STUDIES["ladder"], shard)


def test_the_command_line_runs_a_study(small, tmp_path, capsys):
    assert main(["study", "small", "--results", str(tmp_path), "--shard", "2/3", "--epochs", "1"]) == 0
    assert [(c.stn, c.seed, c.epochs) for c in small] == [(False, 0, 1), (True, 2, 1)]
    assert main(["study", "smal", "--results", str(tmp_path)]) == 2
    assert "study: 'smal' is unknown" in capsys.readouterr().err
    assert main(["study", "small", "--results", str(tmp_path), "--shard", "5/3"]) == 2
    assert "shard: '5/3'" in capsys.readouterr().err


def records(this, accuracies):
    """arm -> accuracy of each seed."""
    return [made_up(this.config(arm, seed), accuracy)
            for arm, values in accuracies.items() for seed, accuracy in enumerate(values)]


def rows_of(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_differences_are_paired_by_seed_with_students_interval(small):
    with_it, without = (0.50, 0.56, 0.61), (0.48, 0.55, 0.58)
    table = report.study_table("small", records(STUDIES["small"], {"with": with_it, "without": without}))
    first, second = rows_of(table)
    assert table.startswith("Does it pay?") and "Measured on 2 CPU cores, a chip." in table
    assert first["arm"] == "with" and first["difference, points (95 %)"] == "-" and first["n"] == "3"
    differences = [100 * (b - a) for a, b in zip(with_it, without, strict=True)]
    expected = stats.t.interval(0.95, 2, loc=statistics.mean(differences), scale=stats.sem(differences))
    mean, half = map(float, second["difference, points (95 %)"].split(" ± "))
    assert mean == pytest.approx(statistics.mean(differences), abs=0.051)
    assert half == pytest.approx((expected[1] - expected[0]) / 2, abs=0.1)
    assert second["test accuracy"] == f"{100 * statistics.mean(without):.1f} ± {100 * statistics.stdev(without):.1f} %"


def test_what_lacks_its_pair_or_its_runs_is_not_compared(small):
    this = STUDIES["small"]
    table = report.study_table("small", [made_up(this.config("with", 0), 0.5), made_up(this.config("without", 1), 0.6)])
    assert [row["difference, points (95 %)"] for row in rows_of(table)] == ["-", "-"]
    table = report.study_table("small", [made_up(this.config("with", 0), 0.5), made_up(this.config("without", 0), 0.6)])
    assert rows_of(table)[1]["difference, points (95 %)"] == "+10.0 (one pair)"
    trial = made_up(this.config("with", 0).replace(epochs=1), 0.9) | dict(machine="a laptop")
    table = report.study_table("small", [trial])
    assert len(rows_of(table)) == 0 and "laptop" not in table  # a trial is not the study


def test_what_was_trained_longer_is_compared_with_what_was_trained_as_long(small, monkeypatch):
    this = Study("?", "tutorial", {"a": {}, "a longer": dict(epochs=90), "b": dict(stn=False),
                                   "b longer": dict(stn=False, epochs=90)}, seeds=1)
    monkeypatch.setitem(STUDIES, "small", this)
    accuracies = {"a": [0.50], "a longer": [0.60], "b": [0.51], "b longer": [0.63]}
    rows = rows_of(report.study_table("small", records(this, accuracies)))
    assert [row["difference, points (95 %)"] for row in rows] == ["-", "-", "+1.0 (one pair)", "+3.0 (one pair)"]


def test_a_choice_is_made_on_validation_images(small, monkeypatch):
    this = Study("Which?", "tutorial", {"a": {}, "b": dict(stn=False)}, common=dict(val_size=10), choice=True, seeds=1)
    monkeypatch.setitem(STUDIES, "small", this)
    row = rows_of(report.study_table("small", records(this, {"a": [0.5], "b": [0.7]})))[0]
    assert row["validation accuracy"] == "40.0 %" and "test accuracy" not in row  # made_up: 10 points lower


def test_students_t_is_near_enough_for_all_numbers_of_runs():
    for freedom in [*range(1, 40), 100, 1000]:
        assert report.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_report_makes_a_studys_table_in_its_place(small, tmp_path):
    for record in records(STUDIES["small"], {"with": [0.5, 0.6], "without": [0.4, 0.45]}):
        study.save(record, tmp_path / "study-small")
    assert report.folder_table(tmp_path / "study-small") == report.study_table(
        "small", study.load_results(tmp_path / "study-small"))
    study.save(made_up(Config()), tmp_path / "study-none-of-ours")
    assert "preset" in report.folder_table(tmp_path / "study-none-of-ours")
    assert math.isclose(report.accuracy(made_up(Config(), 0.3), STUDIES["small"]), 0.3)


def posed(config, accuracy, angle):
    """A record of a run on turned pictures."""
    record = made_up(config, accuracy)
    counts = [int(100 * angle), *[0] * 34, 100]
    return record | dict(pose_recovery=dict(median_angle=angle, within_30=0.5, median_abs_log_scale=0.0,
                                            median_shift=0.0, histogram=counts),
                         test_hypotheses={"2": accuracy + 0.01, "4": accuracy + 0.02}, suites=dict(rts=0.25),
                         against=dict(angle=dict(values=[0, 90], accuracy=[accuracy, accuracy - 0.1])))


def test_a_table_tells_what_was_measured_of_poses_and_only_that():
    this = STUDIES["rotation"]
    records = [posed(this.config(arm, seed), accuracy + seed / 10, 7.0) for arm, accuracy in
               (("CNN", 0.3), ("taught transformer, large", 0.5)) for seed in (0, 1)]
    cnn, taught = rows_of(report.study_table("rotation", records))
    assert (cnn["over 2 poses"], taught["over 4 poses"]) == ("36.0 ± 7.1 %", "57.0 ± 7.1 %")
    assert cnn["on rts"] == "25.0 ± 0.0 %" and "on affine" not in cnn
    assert (cnn["angle left, median"], taught["angle left, median"]) == ("-", "7.0 ± 0.0°")  # it undoes nothing
    assert "moved" not in cnn and "region's size" not in cnn  # the pose says more
    arms = report.runs_by_arm("rotation", records)
    cnn, taught = arms["CNN"], arms["taught transformer, large"]
    assert report.turns_left(cnn) == [] and report.turns_left(taught)[0] == 1400
    assert report.accuracy_against_angle(cnn)["angle"] == dict(values=[0, 90], accuracy=[0.35, 0.25])


def test_arithmetic_is_counted_as_by_hand():
    """Two multiplications and additions a weight and place: the tutorial's classifier, without its transformer."""
    by_hand = 2 * (10 * 3 * 25 * 28**2 + 20 * 10 * 25 * 10**2 + 500 * 50 + 50 * 10)
    assert report.mflop(Config.preset("tutorial", stn=False)) == pytest.approx(by_hand / 1e6, rel=0.01)


def test_report_draws_what_studies_measured_against_the_angle(tmp_path, monkeypatch, capsys):
    this, images = STUDIES["rotation"], tmp_path / "images"
    for arm in this.arms:
        study.save(posed(this.config(arm, 0), 0.5, 7.0), tmp_path / "results" / "study-rotation")
    monkeypatch.setattr("stn_cifar.__main__.write_report", lambda *_: None)
    assert main(["report", "--results", str(tmp_path / "results"), "--images", str(images)]) == 0
    assert {path.name for path in images.iterdir()} == {"study-rotation-angle.png", "study-rotation-left.png"}
