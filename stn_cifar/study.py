"""Runs that leave a record: one JSON a run in results/, and README's tables made from them."""

import datetime
import json
import os
import platform
import re
import statistics
from pathlib import Path

import matplotlib
import numpy
import torch
import torchvision

from . import diagnostics
from .config import PRESETS, Config
from .data import Data, distorted, load_data
from .stn import STNClassifier, build_model
from .training import evaluate, fit

RESULTS = Path("results")
NOTEBOOK = Path("notebooks/stn_cifar10.ipynb")


def run(config: Config, checkpoint_dir=None) -> tuple[STNClassifier, Data, dict]:
    """One experiment from start to end: the trained model, its data, and the record of it for `save`.

    The test images are looked at once, after the last epoch.
    """
    data = load_data(config)
    model = build_model(config)
    history = fit(model, data, config, checkpoint_dir)
    return model, data, record(config, data, model, history)


def record(config: Config, data: Data, model: STNClassifier, history: list[dict]) -> dict:
    """All that is worth keeping of a run, as plain values: config, machine, versions, history, final metrics."""
    train_split = data.train if config.distortion is None else distorted(data.train, config)
    test, train = evaluate(model, data.test), evaluate(model, train_split)
    seen = diagnostics.survey(model, data.test.images)
    result = dict(
        config=config.to_dict(),
        dataset=data.name,
        parameters=sum(p.numel() for p in model.parameters()),
        finished=len(history) == config.epochs,
        epochs_done=len(history),
        precision=history[-1]["precision"] if history else None,
        training_seconds=sum(row["seconds"] for row in history),
        test=dict(accuracy=test.accuracy, loss=test.loss, images=len(data.test), confusion=test.confusion.tolist()),
        train=dict(accuracy=train.accuracy, loss=train.loss, images=len(data.train)),  # dropout off
        theta=diagnostics.summary(seen),
        history=history,
        machine=machine(config),
        versions=dict(python=platform.python_version(), torch=torch.__version__, numpy=numpy.__version__,
                      torchvision=torchvision.__version__, matplotlib=matplotlib.__version__),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    recovery = diagnostics.pose_recovery(data.test.poses, seen.theta)
    if recovery is not None:
        result["pose_recovery"] = recovery.summary()
    return result


def machine(config: Config) -> str:
    """The machine in words: "NVIDIA H200", or the processor with the number of cores this process may use."""
    if config.torch_device().type == "cuda":
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU core{'s' if cores > 1 else ''}, {_processor_name()}"


def _processor_name() -> str:
    try:  # Linux has the marketing name here; platform.processor() is empty there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def changed_fields(config: Config) -> list[str]:
    """What makes a run other than its preset, as texts "field=value"; not its seed, and not where it ran."""
    preset = Config(**{"name": config.name, **PRESETS.get(config.name, {})})
    skip = ("name", "dataset", "data_root", "device", "seed")
    return [f"{key}={value}" for key, value in config.to_dict().items()
            if key not in skip and value != getattr(preset, key)]


def label(config: Config, dataset: str) -> str:
    """A file name's stem for a run: preset, data set, every field that differs from the preset, seed."""
    return "-".join([config.name, dataset.lower().replace("-", ""), *changed_fields(config), f"seed{config.seed}"])


def save(result: dict, folder: Path = RESULTS) -> Path:
    """Write a record of a run into `folder`; returns the file's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = label(Config(**result["config"]), result["dataset"])
    # a run that was stopped must not take the place of a finished one
    path = folder / f"{stem}{'' if result['finished'] else '-stopped'}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)  # whoever reads meanwhile sees the old record or the new one, never half
    return path


def load_results(folder: Path = RESULTS) -> list[dict]:
    """All records of finished runs in `folder`, in the order of their file names."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    return [r for r in records if r.get("finished")]


def results_table(records: list[dict]) -> str:
    """README's table: one row for each kind of run, over its seeds."""
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        config = Config(**r["config"])
        # another machine is another row: its seconds are not to be mixed with these
        groups.setdefault((config.name, r["dataset"], *changed_fields(config), r["machine"]), []).append(r)
    posed = any("pose_recovery" in r for r in records)
    columns = ["preset", "data", "parameters", "epochs", "test accuracy", "training accuracy", "region's size",
               *(["angle left, median", "within 30°"] if posed else []), "s an epoch", "n", "machine"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (name, dataset, *changed, machine_name), runs in groups.items():
        known = [r["pose_recovery"] for r in runs if "pose_recovery" in r]
        pose = [_spread([p["median_angle"] for p in known], "°"), _spread([100 * p["within_30"] for p in known], " %")]
        cells = [", ".join([name, *changed]), dataset, f"{runs[0]['parameters']:,}", str(runs[0]["epochs_done"]),
                 _spread([100 * r["test"]["accuracy"] for r in runs], " %"),
                 _spread([100 * r["train"]["accuracy"] for r in runs], " %"),
                 _spread([r["theta"]["grid_scale"]["mean"] for r in runs], "", digits=2), *(pose if posed else []),
                 f"{statistics.median(row['seconds'] for r in runs for row in r['history']):.1f}",
                 f"{len(runs)}{' (one run)' if len(runs) == 1 else ''}", machine_name]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], unit: str, digits: int = 1) -> str:
    """Mean, with the standard deviation where there are several values; a dash where there are none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}{unit}"


def bench_tables(folder: Path = RESULTS) -> str:
    """README's tables of speed: those that the benchmarks left in `folder`, one section a machine."""
    sections = []
    for path in sorted(Path(folder).glob("bench-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        tables = [bench_table(table) for result in record["benchmarks"].values() for table in result["tables"]]
        more = ["<details><summary>All measurements: each measure, growth, families, anti-aliasing</summary>",
                *tables[1:], "</details>"] if tables[1:] else []
        sections.append("\n\n".join([f"Measured on {record['machine']}:", *tables[:1], *more]))
    return "\n\n".join(sections)


def bench_table(table: dict) -> str:
    """One table of a benchmark (title, columns, rows of texts, note) in Markdown."""
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"{table['title']}.", "", *lines, *(["", table["note"]] if table["note"] else [])])


def colab_link(notebook: Path = NOTEBOOK) -> str:
    """README's line on Colab, from the one place where the repository's address is set: the notebook's REPO_URL."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    tagged = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    settings = "".join("".join(source) for source in tagged)
    address = re.search(r'^REPO_URL = "(.*?)(?:\.git)?/?"', settings, re.MULTILINE)
    ref = re.search(r'^REF = "(.*?)"', settings, re.MULTILINE)
    if address is None or ref is None:
        raise ValueError(f"notebook: {notebook} has no cell tagged 'parameters' that sets REPO_URL and REF")
    if not address[1]:
        return ("The repository's address is not set yet: put it into `REPO_URL` in the notebook's first code cell,\n"
                "run `python -m stn_cifar report`, and the link appears here. Without it, a notebook uploaded to Colab "
                "asks for\nthe address in that same field.")
    page = address[1].replace("https://github.com/", "https://colab.research.google.com/github/")
    return f"[open it in Colab]({page}/blob/{ref[1] or 'main'}/{NOTEBOOK.as_posix()})"


def write_report(readme: Path = Path("README.md"), folder: Path = RESULTS, notebook: Path = NOTEBOOK) -> None:
    """Put the current tables, of results and of speed, and the Colab link between README's markers."""
    text = Path(readme).read_text(encoding="utf-8")
    parts = dict(results=results_table(load_results(folder)), colab=colab_link(notebook))
    # a folder of its own for each question asked of several runs, and the benchmarks: where README has a place for them
    more = {f"results/{sub.name}": results_table(load_results(sub)) for sub in sorted(Path(folder).glob("*/"))}
    more["bench"] = bench_tables(folder)
    parts |= {name: table for name, table in more.items() if f"<!-- {name}:" in text}
    for name, content in parts.items():
        start, end = f"<!-- {name}: python -m stn_cifar report -->", f"<!-- end of {name} -->"
        if start not in text or end not in text:
            raise ValueError(f"readme: {readme} lacks the markers {start!r} and {end!r}")
        before, rest = text.split(start, 1)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"
    Path(readme).write_text(text, encoding="utf-8")
