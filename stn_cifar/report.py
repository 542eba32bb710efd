"""README's tables and links, made from the records in results/ and from the notebook: nothing there is typed."""

import base64
import json
import re
import statistics
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import distortions, studies
from .config import Config
from .stn import build_model
from .study import HYPOTHESES, RESULTS, changed_fields, label, load_results

NOTEBOOK = Path("notebooks/stn_cifar10.ipynb")


def results_table(records: list[dict]) -> str:
    """README's table: one row for each kind of run, over its seeds."""
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        config = config_of(r)
        # another machine or arithmetic is another row: its seconds are not to be mixed with these
        groups.setdefault((config.name, r["dataset"], *changed_fields(config), r["history"][-1]["precision"],
                           r["machine"]), []).append(r)
    posed, averaged = (any(key in r for r in records) for key in ("pose_recovery", "test_averaged"))
    columns = ["preset", "data", "parameters", "epochs", "test accuracy",
               *(["averaged over views"] if averaged else []), "training accuracy", "region's size",
               *(["angle left, median", "within 30°"] if posed else []), "s an epoch", "arithmetic", "n", "machine"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (name, dataset, *changed, precision, machine_name), runs in groups.items():
        known = [r["pose_recovery"] for r in runs if "pose_recovery" in r]
        pose = [spread([p["median_angle"] for p in known], "°"), spread([100 * p["within_30"] for p in known], " %")]
        cells = [", ".join([name, *changed]), dataset, f"{runs[0]['parameters']:,}", str(runs[0]["epochs_done"]),
                 spread([100 * r["test"]["accuracy"] for r in runs], " %"),
                 *([spread([100 * r["test_averaged"]["accuracy"] for r in runs if "test_averaged" in r], " %")]
                   if averaged else []),
                 spread([100 * r["train"]["accuracy"] for r in runs], " %"),
                 spread([r["theta"]["grid_scale"]["mean"] for r in runs], "", digits=2), *(pose if posed else []),
                 f"{statistics.median(row['seconds'] for r in runs for row in r['history']):.1f}",
                 precision, f"{len(runs)}{' (one run)' if len(runs) == 1 else ''}", machine_name]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def study_table(name: str, records: list[dict]) -> str:
    """README's table of a study: one row an arm, over its seeds.

    Differences are to the first arm that was trained for as many epochs, paired by seed.
    """
    this, arms = studies.STUDIES[name], runs_by_arm(name, records)
    measured = "validation" if this.choice else "test"
    first, rows = {}, []  # epochs -> runs of the first arm trained so long, be there any or not
    for arm, runs in arms.items():
        control = first.setdefault(this.config(arm, 0).epochs, runs)
        if not runs:
            continue
        one = next(iter(runs.values()))
        difference = [100 * (accuracy(runs[s], this) - accuracy(control[s], this)) for s in runs if s in control]
        rows.append({
            "arm": arm, "parameters": f"{one['parameters']:,}", "MFLOP an image": f"{mflop(config_of(one)):.0f}",
            "epochs": str(one["epochs_done"]),
            f"{measured} accuracy": spread([100 * accuracy(r, this) for r in runs.values()], " %"),
            "difference, points (95 %)": "-" if runs is control else interval(difference),
            **more_columns(list(runs.values())),
            "s an epoch": f"{statistics.median(row['seconds'] for r in runs.values() for row in r['history']):.1f}",
            "n": str(len(runs))})
    machines = ", ".join(sorted({r["machine"] for runs in arms.values() for r in runs.values()}))
    optional = more_columns([])  # left out where no arm fills them
    columns = [name for name in (rows or [{}])[0] if name not in optional or any(row[name] != "-" for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([this.question, "", *lines, "", f"Measured on {machines}."])


def config_of(record: dict) -> Config:
    """The experiment of a record, on the CPU wherever it ran: there may be no GPU where it is told of."""
    return Config(**record["config"] | dict(device="cpu"))


def mflop(config: Config) -> float:
    """Arithmetic of one image's way through the model that `config` builds, 10^6 additions and multiplications."""
    model = build_model(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, config.channels, config.image_size, config.image_size))
    return counter.get_total_flops() / 1e6


def runs_by_arm(name: str, records: list[dict]) -> dict[str, dict[int, dict]]:
    """The records of the study `name`: arm -> seed -> record, in the study's order; an arm may have none yet."""
    this = studies.STUDIES[name]
    labelled = {label(config_of(r), r["dataset"]): r for r in records}
    return {arm: {seed: labelled[key] for seed in range(this.seeds)
                  if (key := label(this.config(arm, seed), "cifar10")) in labelled} for arm in this.arms}


def more_columns(runs: list[dict]) -> dict[str, str]:
    """What else the records of one arm tell, a dash for what they do not: other tests, what is left of a known pose."""
    def column(keys, unit, factor=1.0, digits=1, only=True):
        found = []
        for record in runs:
            value = record if only else {}
            for key in keys:
                value = value.get(key, {})
            found += [factor * value] if value != {} else []
        return spread(found, unit, digits)

    moves = any(record["config"]["stn"] for record in runs)
    posed = any("pose_recovery" in record for record in runs)  # tells more than what the transformer does
    turned = all((record["config"]["distortion"] or "").startswith("rotation") for record in runs)  # and nothing else
    columns = {f"over {count} poses": column(("test_hypotheses", str(count)), " %", 100) for count in HYPOTHESES}
    columns |= {f"on {suite}": column(("suites", suite), " %", 100) for suite in distortions.DISTORTIONS}
    columns |= {
        "angle left, median": column(("pose_recovery", "median_angle"), "°", only=moves),
        "within 30°": column(("pose_recovery", "within_30"), " %", 100, only=moves),
        "scale left": column(("pose_recovery", "median_abs_log_scale"), " %", 100, only=moves and not turned),
        "shift left, half-widths": column(("pose_recovery", "median_shift"), "", digits=2, only=moves and not turned),
    }
    columns |= {"region's size": column(("theta", "grid_scale", "mean"), "", digits=2, only=not posed),
                "moved": column(("theta", "moved", "mean"), "", digits=2, only=not posed)}
    return columns


def accuracy_against_angle(runs: dict[int, dict]) -> dict:
    """The mean over the runs of one arm of what a study with `angles` measured, as plots.robustness takes it."""
    measured = [record["against"]["angle"] for record in runs.values() if "against" in record]
    if not measured:
        return {}
    accuracies = zip(*(one["accuracy"] for one in measured), strict=True)
    return dict(angle=dict(values=measured[0]["values"], accuracy=[statistics.mean(seeds) for seeds in accuracies]))


def turns_left(runs: dict[int, dict]) -> list[int]:
    """The histograms of the angle left of one arm's runs, added up; empty where nothing undoes a known pose."""
    counts = [record["pose_recovery"]["histogram"] for record in runs.values()
              if record["config"]["stn"] and "histogram" in record.get("pose_recovery", {})]
    return [sum(seeds) for seeds in zip(*counts, strict=True)]


def accuracy(record: dict, this: studies.Study) -> float:
    """What the study compares: the last epoch's accuracy on validation images for a choice, else on test images."""
    return record["history"][-1]["val_accuracy"] if this.choice else record["test"]["accuracy"]


def interval(values: list[float]) -> str:
    """Mean of paired differences with the half-width of its 95 % interval (Student's t); of one pair no interval."""
    if len(values) < 2:
        return f"{values[0]:+.1f} (one pair)" if values else "-"
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{round(statistics.mean(values), 1) + 0.0:+.1f} ± {half:.1f}"  # + 0.0: no "-0.0"


def t_quantile(freedom: int) -> float:
    """Student's t, two-sided 95 %, to 1 %: a table up to 9 degrees of freedom, beyond it 1.96 + 2.6 / freedom."""
    table = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
    return table[freedom - 1] if freedom <= len(table) else 1.96 + 2.6 / freedom


def spread(values: list[float], unit: str, digits: int = 1) -> str:
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


def folder_table(folder: Path) -> str:
    """The table of a folder of records: a study's, where its name is study-NAME, else one row for each kind of run."""
    name = folder.name.removeprefix("study-")
    return study_table(name, load_results(folder)) if name in studies.STUDIES else results_table(load_results(folder))


def write_report(readme: Path = Path("README.md"), folder: Path = RESULTS, notebook: Path = NOTEBOOK) -> None:
    """Put the current tables, of results and of speed, and the Colab link between README's markers."""
    text = Path(readme).read_text(encoding="utf-8")
    parts = dict(results=results_table(load_results(folder)), colab=colab_link(notebook))
    # a folder of its own for each question asked of several runs, and the benchmarks: where README has a place for them
    more = {f"results/{sub.name}": folder_table(sub) for sub in sorted(Path(folder).glob("*/"))}
    more["bench"] = bench_tables(folder)
    parts |= {name: table for name, table in more.items() if f"<!-- {name}:" in text}
    for name, content in parts.items():
        start, end = f"<!-- {name}: python -m stn_cifar report -->", f"<!-- end of {name} -->"
        if start not in text or end not in text:
            raise ValueError(f"readme: {readme} lacks the markers {start!r} and {end!r}")
        before, rest = text.split(start, 1)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"
    Path(readme).write_text(text, encoding="utf-8")
    embed_pictures(notebook)


def embed_pictures(notebook: Path) -> None:
    """Embed the pictures that the notebook's texts name in their titles, ![...](... "images/NAME.png").

    As data URIs: a notebook opened in Colab comes without the files beside it, and Colab shows no attachments
    (colabtools#3836).
    """
    content = json.loads(Path(notebook).read_text(encoding="utf-8"))

    def embedded(found):
        picture = (Path(notebook).resolve().parent.parent / found[2]).read_bytes()
        return f'{found[1]}data:image/png;base64,{base64.b64encode(picture).decode()} "{found[2]}")'

    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            source = re.sub(r'(!\[[^]]*\]\()\S+ "(images/[^"]+\.png)"\)', embedded, "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
    Path(notebook).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
