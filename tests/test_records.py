"""Records: what identifies a run, where it lies, and what is refused."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import made_up
import pytest

from experiments import records
from stn_cifar import Config

ROOT = Path(__file__).resolve().parents[1]


# ---- identity ------------------------------------------------------------------------------------


def other_value(name, value):
    """Another value of a Config field, legal or not: identity looks at content alone."""
    kinds = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.5}
    return kinds.get(type(value), lambda: f"other {name}")()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_every_field_makes_another_experiment_but_those_that_say_where_and_which_seed(name):
    plain = Config(precision="fp32").to_dict()
    changed = plain | {name: other_value(name, plain[name])}
    same = records.identity(changed) == records.identity(plain)
    assert same == (name in ("name", "data_root", "device", "seed"))


def test_what_auto_came_to_is_part_of_the_identity():
    auto, fp32 = Config().to_dict(), Config(precision="fp32").to_dict()
    assert records.identity(auto, "fp32") == records.identity(fp32)
    assert records.identity(auto, "bf16") != records.identity(fp32)


def test_a_whole_number_makes_no_other_experiment_and_a_younger_field_has_its_default():
    config = Config.preset("compact", width=2.0, precision="fp32").to_dict()
    assert records.identity(config | dict(width=2)) == records.identity(config)
    older = {key: value for key, value in config.items() if key != "supersample"}
    assert records.identity(older) == records.identity(config)
    assert records.identity(config | dict(supersample=2)) != records.identity(older)
    assert records.identity(config | dict(gone=1)) != records.identity(config)  # not forgotten


# ---- files ---------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written_and_what_is_not_finite_is_null(tmp_path):
    record = made_up.record(loss=math.nan, more=[1.0, math.inf, {"deep": -math.inf}])
    path = records.write(record, tmp_path / "new" / "record.json")
    assert records.read(path) == record | dict(loss=None, more=[1.0, None, {"deep": None}])
    assert list(path.parent.iterdir()) == [path]


def test_a_name_says_arm_budget_and_seed_and_no_record_takes_anothers_place(tmp_path):
    record = made_up.record(arm="with", seed=2)

    def place(**fields):
        return records.place(tmp_path, "small", "CNN, the tutorial's 90°",
                             record["config"] | fields, "fp32")

    path = place()
    assert path.relative_to(tmp_path).as_posix() == "small/cnn-the-tutorials-90-2e-s2.json"
    records.write(record, path)
    assert place() == path == place(device="cuda", name="x")  # the same experiment
    edited = place(learning_rate=0.5)  # the arm was changed since
    assert edited != path and edited.name.startswith(path.stem + "-") and edited == place(
        learning_rate=0.5)
    assert place(learning_rate=0.25) not in (path, edited)
    path.write_text("{")
    assert place(learning_rate=0.5) == path  # a damaged file holds no place


BROKEN = {
    "empty": b"", "cut off": b'{"study": "s', "another type": b"[1]", "no fields": b"{}",
    "no text": b"\xff\xfe", "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", [*BROKEN, "stopped", "no accuracy", "nested config", "no config"])
def test_what_is_no_record_is_told_with_its_file(tmp_path, kind):
    path = tmp_path / "small" / "broken.json"
    path.parent.mkdir()
    changes = {"stopped": dict(finished=False), "no accuracy": dict(test={}),
               "nested config": dict(config=dict(epochs=[1], stn=True, distortion=None)),
               "no config": dict(config={})}
    content = BROKEN.get(kind) or json.dumps(made_up.record() | changes.get(kind, {})).encode()
    path.write_bytes(b"" if kind == "empty" else content)
    for call in (lambda: records.read(path), lambda: records.load(tmp_path)):
        with pytest.raises(records.RecordError, match=r"broken\.json"):
            call()


def test_a_folder_without_records_is_refused_and_so_is_the_same_run_twice(tmp_path):
    for folder in (tmp_path, tmp_path / "typo"):
        with pytest.raises(records.RecordError, match=r"results: .*missing or holds no records"):
            records.load(folder)
    record = made_up.record()
    records.write(record, tmp_path / "small" / "a.json")
    (tmp_path / "other.json").write_text("[]")  # not in a study's folder
    elsewhere = records.write(record, tmp_path / "other" / "a.json")
    with pytest.raises(records.RecordError, match=r"a\.json: belongs to study 'small'"):
        records.load(tmp_path)
    elsewhere.unlink()
    assert records.load(tmp_path) == {"small": [record]}
    records.write(record | dict(arm="another name"), tmp_path / "small" / "b.json")
    with pytest.raises(records.RecordError, match=r"b\.json: is the same run as .*a\.json"):
        records.load(tmp_path)


# ---- one process a run ---------------------------------------------------------------------------


def test_a_run_is_claimed_once_and_free_again_afterwards(tmp_path):
    path = tmp_path / "new" / "run.json"
    with records.claim(path) as first, records.claim(path) as second:
        assert (first, second) == (True, False)
        with records.claim(path.with_name("other.json")) as other:
            assert other
    assert list(path.parent.iterdir()) == []
    with records.claim(path) as again:
        assert again


def test_a_process_that_died_holds_no_claim(tmp_path):
    path = tmp_path / "run.json"
    code = ("import fcntl, sys, time; file = open(sys.argv[1], 'w');"
            "fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(600)")
    with subprocess.Popen([sys.executable, "-S", "-c", code, tmp_path / ".run.lock"], text=True,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "locked\n"
        with records.claim(path) as ours:
            assert not ours
        process.kill()
    with records.claim(path) as ours:
        assert ours


def test_a_lock_file_that_its_owner_has_just_deleted_locks_nothing(tmp_path, monkeypatch):
    lock, flock = tmp_path / ".run.lock", records.fcntl.flock
    monkeypatch.setattr(records.fcntl, "flock", lambda *given: lock.unlink() or flock(*given))
    with records.claim(tmp_path / "run.json") as ours:
        assert not ours


# ---- this repository -----------------------------------------------------------------------------


def test_the_records_here_are_valid_and_lie_where_they_belong():
    found = records.load(ROOT / "results")
    for record in (record for runs in found.values() for record in runs):
        config = record["config"]
        Config(**config | dict(device="cpu"))  # today's fields and values
        assert record["seed"] == config["seed"] and record["epochs_done"] == config["epochs"]
        path = records.place(ROOT / "results", record["study"], record["arm"], config,
                             record["precision"])
        assert path.is_file(), path
        assert config["precision"] in ("auto", record["precision"])
        assert config["dataset"] != "auto"  # what it came to


def test_no_path_here_is_too_long_for_any_file_system():
    paths = []
    for folder in ("stn_cifar", "experiments", "tests", "results", "images", "notebooks"):
        paths += [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*")
                  if "__pycache__" not in path.parts]
    assert len(paths) > 50
    assert [path for path in paths if len(path) > 120] == []
