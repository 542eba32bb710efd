"""The benchmarks run, in a tiny form, and leave a record of which the page is made. Not timed."""

import json
from pathlib import Path

import pytest

from experiments.bench import (
    arms,
    captured,
    children,
    company,
    families,
    loops,
    run,
    speed,
)
from experiments.records import RecordError

ROOT = Path(__file__).resolve().parents[1]
PLAIN, OURS = "tutorial's loop, no workers", "ours"


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Starting a process takes seconds."""
    monkeypatch.setattr(run, "QUICK", run.QUICK | dict(rounds=1))


def test_families_are_measured_and_told_relative_to_affine(tmp_path):
    path = run.run(["families"], tmp_path, quick=True, device="cpu")
    assert path.parent == tmp_path / "speed" and [path] == list(path.parent.iterdir())
    record = speed.read(path)
    assert "CPU core" in record["machine"] and list(record["benchmarks"]) == ["families"]
    assert {"versions", "date", "threads", "dataset"} <= set(record["benchmarks"]["families"])
    table = speed.families(record["benchmarks"]["families"])
    assert "| affine | " in table and table.count(" ms |") == 2
    run.run(["families"], tmp_path, quick=True, device="cpu")  # again: replaced, not added
    assert [path] == list(path.parent.iterdir())


def test_a_loop_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "LOOPS", {PLAIN: loops.LOOPS[PLAIN]})
    path = run.run(["loops"], tmp_path, quick=True, device="cpu")
    found = speed.read(path)["benchmarks"]["loops"]
    (name, (one,)), = found["raw"].items()
    assert name == PLAIN and one["images"] == 32 and one["seconds"] > one["data_seconds"] > 0
    assert 8e6 < found["flops_per_image"] < 16e6  # by hand: 11 million, most in two convolutions
    assert speed.loop_cells(found)[0]["times the tutorial's better"] == "1.00"


def test_a_step_is_measured_beside_other_programs(tmp_path, monkeypatch):
    loops = {name: company.LOOPS[name] for name in list(company.LOOPS)[::5]}
    monkeypatch.setattr(company, "LOOPS", loops)
    path = run.run(["company"], tmp_path, quick=True, device="cpu")
    found = speed.read(path)["benchmarks"]["company"]
    assert list(found["raw"]) == list(company.COMPANY) and len(found["raw"]) == 4
    for rounds in found["raw"].values():
        assert {name: len(values) for name, values in rounds.items()} == dict.fromkeys(loops, 1)
        assert all(values[0] > 0 for values in rounds.values())
    assert speed.company(found).count(", 1.0 x") >= len(loops)  # the quiet column at least


def test_ours_is_fit_whose_epochs_are_rounds():
    class Enough(Exception):
        pass

    def answer(result):
        rounds.append(result)
        if len(rounds) == 2:
            raise Enough

    rounds = []
    with pytest.raises(Enough):
        arms.ours(answer, steps=2, count=40, dataset="glyphs", batch_size=16, device="cpu")
    assert all(one["images"] == 32 and one["seconds"] > 0 for one in rounds)


def test_the_numbers_are_those_of_the_rounds():
    rounds = [dict(seconds=seconds, images=600, precision="fp32", peak_mb=100.0, data_seconds=0.5)
              for seconds in (1.0, 2.0, 3.0)]
    result = dict(raw={PLAIN: rounds, OURS: [dict(rounds[0], seconds=0.5)]}, flops_per_image=1e6,
                  ceilings=dict(fp32={"matrix product": [6e9], "convolution": [3e9]}))
    plain, ours = speed.loop_cells(result)
    assert plain["images/s"] == "300 (200 to 600)" and ours["images/s"] == "1,200 (1,200 to 1,200)"
    assert ours["times the tutorial's better"] == "4.00" and plain["waiting for data"] == "25.0 %"
    assert plain["share of the ceiling"] == "5.0 %" and plain["peak memory, MB"] == "100"


def test_a_damaged_record_is_told_and_a_benchmark_makes_it_anew(tmp_path, monkeypatch):
    path = tmp_path / "speed" / "x.json"
    path.parent.mkdir()
    for content in ("", "[]", "{}", '{"machine": 1, "benchmarks": []}'):
        path.write_text(content)
        with pytest.raises(RecordError, match=r"x\.json: is no record of a benchmark"):
            speed.load(path.parent)
        run.keep(path, "a machine", "loops", dict(raw={}))
        assert speed.read(path) == dict(machine="a machine", benchmarks=dict(loops=dict(raw={})))


def test_the_record_here_makes_a_page_and_numbers():
    found = speed.load(ROOT / "results" / "speed")
    page = speed.page(found)
    for kind, record in found.items():
        assert f"\n## {kind}\n" in page and kind == run.kind_of(record["machine"])
        if "loops" in record["benchmarks"]:
            assert speed.numbers(found)[f"speed.md#{kind}", OURS, "images/s"] in page
        assert json.dumps(record).count("null") == json.dumps(record).count('"peak_mb": null')


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "ROOT", tmp_path)  # where there are no benchmarks
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it may lead back here
    with pytest.raises(children.Failed, match="No module named"), children.started(dict(a={})):
        pass


def test_an_unknown_benchmark_is_told_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="benchmark: 'lops'; must be one of loops, company"):
        run.run(["lops"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("machine, kind", [
    ("2 CPU cores, Intel(R) Xeon(R) Processor", "2-core-xeon"),
    ("8 CPU cores, Apple M2", "8-core-apple-m2"), ("NVIDIA H200", "nvidia-h200"),
    ("1 CPU core, AMD EPYC 9B14", "1-core-epyc"), ("4 CPU cores, ", "4-core-cpu")])
def test_the_kind_of_machine_is_a_short_part_of_a_file_name(machine, kind):
    assert run.kind_of(machine) == kind


def test_captured_and_eager_steps_are_told_side_by_side(tmp_path, monkeypatch):
    kinds = dict(eager=[4.0, 5.0, 6.0], captured=[0.4, 0.5, 0.6])
    result = dict(raw={"tutorial": kinds}, precision="bf16", peak_mb=347.0, date="2026-11-28T00")
    table = speed.captured(result)
    assert "| tutorial | 5.00 (4.00 to 6.00) | 0.50 (0.40 to 0.60) | 10.0 |" in table
    monkeypatch.setattr(run, "BENCHMARKS", dict(captured=captured.run, families=families.run))
    path = run.run([], tmp_path, quick=True, device="cpu")
    assert list(speed.read(path)["benchmarks"]) == ["families"]  # without CUDA it is left out
