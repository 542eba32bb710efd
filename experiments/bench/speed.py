"""results/speed.md, made from the records of the benchmarks."""

import json
import statistics
from pathlib import Path

from stn_cifar.data.dataset import NAMES

from ..records import RecordError
from ..tables import markdown, plain

INTRODUCTION = """\
# Speed

Made from the records in [speed/](speed/) by `python -m stn_cifar report`; once more, on your
machine: `python -m stn_cifar bench`. What is compared is measured in turns, and told as the median
of the rounds (least to most).
"""
TUTORIAL = "tutorial's loop"  # how the names of the loops begin that ours is measured against


def load(folder: Path) -> dict[str, dict]:
    """Kind of machine -> record. RecordError, naming the file, for one that is damaged."""
    return {path.stem: read(path) for path in sorted(Path(folder).glob("*.json"))}


def read(path: Path) -> dict:
    """The record at `path`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["machine"], str) and isinstance(record["benchmarks"], dict):
            return record
        error = "machine or benchmarks: of another type"
    except (ValueError, KeyError, TypeError) as trouble:
        error = f"{type(trouble).__name__}: {trouble}"
    raise RecordError(f"{path}: is no record of a benchmark ({error})")


def page(found: dict[str, dict]) -> str:
    """All of speed.md."""
    parts = [INTRODUCTION.strip()]
    for kind, record in found.items():
        parts.append(f"## {kind}\n\n{plain(record['machine'])}.")
        for name, result in record["benchmarks"].items():
            if name in TELL:
                parts.append(TELL[name](result))
    return "\n\n".join(parts) + "\n"


def numbers(found: dict[str, dict]) -> dict[tuple[str, str, str], str]:
    """(place, loop, column) -> cell, for README: place is speed.md#KIND."""
    cells_of = dict(loops=loop_cells, captured=captured_cells)
    return {(f"speed.md#{kind}", next(iter(cells.values())), column): cell
            for kind, record in found.items()
            for name, result in record["benchmarks"].items() if name in cells_of
            for cells in cells_of[name](result) for column, cell in cells.items()}


def rates(rounds):
    """Images per second of each round."""
    return [one["images"] / one["seconds"] for one in rounds]


def median_and_range(values):
    """Median, least and most, for people."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def loop_cells(result):
    """One dict a loop: column -> cell."""
    best = max(statistics.median(rates(rounds)) for name, rounds in result["raw"].items()
               if name.startswith(TUTORIAL))
    cells = []
    for name, rounds in result["raw"].items():
        rate, precision = statistics.median(rates(rounds)), rounds[0]["precision"]
        most = max(statistics.median(values) for values in result["ceilings"][precision].values())
        waits = [one["data_seconds"] / one["seconds"] for one in rounds if "data_seconds" in one]
        peaks = [one["peak_mb"] for one in rounds if one["peak_mb"]]
        cells.append({
            "loop": name, "precision": precision, "images/s": median_and_range(rates(rounds)),
            "times the tutorial's better": f"{rate / best:.2f}",
            "waiting for data": f"{100 * statistics.median(waits):.1f} %" if waits else "-",
            "peak memory, MB": f"{max(peaks):,.0f}" if peaks else "-",
            "share of the ceiling": f"{100 * rate * result['flops_per_image'] / most:.1f} %"})
    return cells


def loops(result):
    """The table of loops."""
    cells = loop_cells(result)
    ceilings = "; ".join(
        f"{precision} " + ", ".join(f"{name} {statistics.median(values) / 1e9:,.0f}"
                                    for name, values in kinds.items())
        for precision, kinds in sorted(result["ceilings"].items()))
    dataset = NAMES.get(result["dataset"], plain(result["dataset"]))
    return "\n\n".join([
        f"Training loops: preset `tutorial`, {dataset}, batches of "
        f"{result.get('batch_size', 64)}, {result['threads']} threads, rounds of "
        f"{result['steps']} steps, {result['date'][:10]}:",
        markdown(list(cells[0]), [list(one.values()) for one in cells]),
        f"A step needs {result['flops_per_image'] / 1e6:.1f} MFLOP an image. The ceiling is what "
        f"the machine reached in the same run, GFLOP/s: {ceilings}. Starting an epoch's workers is "
        "not counted; peak memory counts what workers do not share."])


def families(result):
    """Milliseconds for affine, and what the others take relative to it."""
    names = list(next(iter(result["raw"].values())))
    columns, rows = ["family"], [[name] for name in names]
    for case, found in result["raw"].items():
        columns += [f"{case}, forward", f"{case}, both"]
        for row, name in zip(rows, names, strict=True):
            for kind, values in found[name].items():
                # the ratio within a round: a slow moment hits both
                ratios = [a / b for a, b in zip(values, found["affine"][kind], strict=True)]
                row.append(f"{1000 * statistics.median(values):.2f} ms" if name == "affine"
                           else f"{statistics.median(ratios):.2f}")
    return ("Warps: time relative to affine (batch x image size; both: forward and backward):\n\n"
            + markdown(columns, rows))


def company(result):
    """Milliseconds of a step, and how many times that is of the same loop's quiet one."""
    columns, quiet = ["loop", *result["raw"]], result["raw"]["quiet"]
    rows = []
    for name in quiet:
        alone = statistics.median(quiet[name])
        cells = [(statistics.median(found[name]), min(found[name]), max(found[name]))
                 for found in result["raw"].values()]
        rows.append([name] + [f"{middle:.1f} ({low:.1f} to {high:.1f}), {middle / alone:.1f} x"
                              for middle, low, high in cells])
    rounds = len(next(iter(quiet.values())))
    return (f"A step beside other programs, {result['threads']} threads, milliseconds: median "
            f"(least to most) of {rounds} rounds in turns, and times the quiet one, "
            f"{result['date'][:10]}:\n\n" + markdown(columns, rows))


def captured_cells(result):
    """One dict a preset: column -> cell."""
    cells = []
    for name, kinds in result["raw"].items():
        middle = {kind: statistics.median(values) for kind, values in kinds.items()}
        cells.append({"preset": name} | {
            kind: f"{middle[kind]:.2f} ({min(values):.2f} to {max(values):.2f})"
            for kind, values in kinds.items()} | {
            "times as fast": f"{middle['eager'] / middle['captured']:.1f}"})
    return cells


def captured(result):
    """Milliseconds of a step, eager and captured, and their ratio."""
    cells = captured_cells(result)
    return (f"A training step, kernel by kernel and captured as a CUDA graph, milliseconds: median "
            f"(least to most), {result['precision']}, {result['date'][:10]}; at most "
            f"{result['peak_mb']:,.0f} MB of the card's memory:\n\n"
            + markdown(list(cells[0]), [list(one.values()) for one in cells]))


TELL = dict(loops=loops, company=company, captured=captured, families=families)
