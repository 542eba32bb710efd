"""The benchmarks run, in a tiny form, and leave a record from which README's tables are made. Nothing is timed."""

import json
import sys
from pathlib import Path

import pytest

from stn_cifar import __main__ as command_line
from stn_cifar import report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import children, growth, loops, measures, run  # beside the package, not in it


@pytest.fixture(autouse=True)
def few_processes(monkeypatch):
    """One size and one round: starting a process takes seconds."""
    monkeypatch.setattr(run, "QUICK", run.QUICK | dict(rounds=1, batch_sizes=(8,), image_sizes=()))


def bench(tmp_path, *names):
    assert command_line.main(["bench", "--quick", "--device", "cpu", "--results", str(tmp_path), "--images",
                              str(tmp_path), *names]) == 0
    path, = tmp_path.glob("bench-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert list(record["benchmarks"]) == [name for name in run.BENCHMARKS if name in names]
    for result in record["benchmarks"].values():
        assert result["quick"] and {"rounds", "versions", "date", "dataset", "tables"} <= set(result)
        for table in result["tables"]:
            assert all(len(row) == len(table["columns"]) for row in table["rows"])
    return record["benchmarks"]


def test_warps_and_antialiasing_make_tables_that_report_puts_into_readme(tmp_path):
    found = bench(tmp_path, "families", "antialias")
    assert [row[0] for row in found["families"]["tables"][0]["rows"]][4] == "affine"
    assert len(found["antialias"]["rms_grey_levels"]["plain bilinear"]) == len(run.QUICK["scales"])
    tables = report.bench_tables(tmp_path)
    assert tables.startswith("Measured on ") and "| affine |" in tables and "| plain bilinear |" in tables
    assert report.load_results(tmp_path) == []  # they are no runs
    bench(tmp_path, "families", "antialias")  # again: replaced, not added
    readme, notebook = tmp_path / "README.md", ROOT / "notebooks" / "stn_cifar10.ipynb"
    readme.write_text("".join(f"<!-- {name}: python -m stn_cifar report -->OLD<!-- end of {name} -->"
                              for name in ("results", "colab", "bench")), encoding="utf-8")
    report.write_report(readme, tmp_path, notebook)
    assert tables.splitlines()[-1] in readme.read_text(encoding="utf-8") and "OLD" not in readme.read_text("utf-8")


def test_loops_are_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    some = (loops.TUTORIAL_LOOPS[0], "ours")
    monkeypatch.setattr(loops, "LOOPS", {name: loops.LOOPS[name] for name in some})
    monkeypatch.setattr(loops, "TUTORIAL_LOOPS", some[:1])
    marks = {"total": 3.0, "imports": 2.0}
    monkeypatch.setattr(loops, "start_ups", lambda settings: {"tutorial": [marks], "ours": [marks]})
    found = bench(tmp_path, "loops")["loops"]
    assert {name: len(rounds) for name, rounds in found["raw"].items()} == dict.fromkeys(some, 1)
    for each in found["raw"]["ours"]:
        assert each["images"] == 32 and each["seconds"] > 0 and each["peak_mb"] > 50 and each["data_seconds"] > 0
    # by hand: 11 million, most of it in the two first convolutions
    assert 8e6 < found["flops_per_image"] < 16e6
    assert not list(tmp_path.glob("tmp*"))  # the checkpoints that were written are gone


def test_a_point_of_growth_and_its_figure(tmp_path):
    point, = bench(tmp_path, "growth")["growth"]["points"]
    assert point["batch_size"] == 8 and point["peak_mb"] > 0 and (tmp_path / "cost.png").stat().st_size > 1000
    more = [point | dict(image_size=64)]
    assert len(growth.figure([point, *more], "title").axes) == 3


def test_each_rung_of_the_ladder_is_one_measure_more_and_the_top_is_ours():
    rungs, top = measures.ladder("bf16")
    steps = list(rungs.values())
    assert steps[-1] == top == dict(arm="plain", data="resident", channels_last=True, precision="bf16", flush=True,
                                    item=False)
    assert measures.ladder("fp32")[1]["precision"] == "fp32"
    assert all(sum(options.get(key) != top.get(key) for key in options) == 1  # one change each
               for options in measures.variants(top).values())


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    child = children.Child({}, env=dict(PYTHONPATH=str(tmp_path)))  # where there are no benchmarks
    with pytest.raises(children.Failed, match="No module named"):
        child.answer()
    child.end()


def test_without_the_repository_it_says_where_the_benchmarks_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "site-packages" / "stn_cifar" / "__main__.py"))
    assert command_line.main(["bench"]) == 2
    assert "in the repository" in capsys.readouterr().err


@pytest.mark.parametrize("machine, slug", [
    ("2 CPU cores, Intel(R) Xeon(R) Processor", "2-core-xeon"), ("8 CPU cores, Apple M2", "8-core-apple-m2"),
    ("NVIDIA H200", "nvidia-h200"), ("4 CPU cores, ", "4-core-cpu")])
def test_the_machine_kind_is_a_short_part_of_a_file_name(machine, slug):
    assert run.slug(machine) == slug
