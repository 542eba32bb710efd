"""Tables of records in Markdown. They read records only: no preset and no model of today."""

import html
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .intervals import difference, mean_std
from .records import identity_of
from .study import Study
from .suites import FILTERED


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every cell is shown as it is, whatever it holds."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)


def plain(text: str) -> str:
    """`text` for Markdown, so that nothing in it is markup, ends a cell or opens a comment."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*|\[\]$~])", r"\\\1", html.escape(words, quote=False))


@dataclass(frozen=True)
class Row:
    """The runs of one arm and budget, by seed, and those of what they are compared with."""

    arm: str
    runs: dict[int, dict]
    controls: dict[str, dict[int, dict]]  # name of the control -> its runs
    ceiling: float | None = None  # mean accuracy of the same classifier, trained and tested upright

    @property
    def first(self) -> dict:
        """One of the runs: what they have in common."""
        return next(iter(self.runs.values()))

    @property
    def epochs(self) -> int:
        """The budget."""
        return self.first["epochs_done"]


def rows_of(this: Study, found: list[dict]) -> list[Row]:
    """The rows of a study: longest budget first, then its arms in their order, unknown ones last.

    An arm whose records differ by more than the seed, as from before it was changed, has several
    rows, each named by what differs.
    """
    groups: dict[tuple, dict[int, dict]] = {}
    for record in found:
        key = record["arm"], record["epochs_done"], identity_of(record)
        groups.setdefault(key, {})[record["seed"]] = record
    rows = []
    for (arm, epochs, identity), runs in groups.items():
        others = [key for key in groups if key[:2] == (arm, epochs)]
        differing = {name for key in others for name, _ in key[2] ^ identity}
        told = [f"{name}={value}" for name, value in sorted(identity, key=str) if name in differing]
        controls = {}
        upright = is_upright_control(next(iter(runs.values())))
        for control in () if upright else this.controls:
            same_budget = [key for key in groups if key[:2] == (control, epochs)]
            if same_budget and control != arm:  # of several the one nearest in content
                nearest = min(same_budget, key=lambda key: len(key[2] ^ identity))
                controls[control] = groups[nearest]
        ceiling = [record["test"]["accuracy"] for record in found if _is_ceiling(record, runs)]
        rows.append(Row(", ".join([arm, *told]), dict(sorted(runs.items())), controls,
                        statistics.mean(ceiling) if ceiling else None))
    order = list(this.arms)
    return sorted(rows, key=lambda row: (-row.epochs, order.index(row.first["arm"])
                                         if row.first["arm"] in order else len(order)))


def is_upright_control(record: dict) -> bool:
    """Of a classifier alone, trained and tested upright? It is compared with nothing turned."""
    return record["config"]["distortion"] == "disc" and not record["config"]["stn"]


def _is_ceiling(record: dict, runs: dict[int, dict]) -> bool:
    """Is `record` of the classifier of `runs` alone, trained as long on upright images?"""
    one, other = record["config"], next(iter(runs.values()))["config"]
    return (is_upright_control(record) and other["distortion"] != "disc"
            and all(one[key] == other[key] for key in ("model", "width", "epochs")))


@dataclass(frozen=True)
class Column:
    """A number of each run, told as mean and standard deviation over a row's seeds."""

    title: str
    of: Callable[[dict], float | None]  # None: the record does not have it
    unit: str = " %"
    factor: float = 100
    digits: int = 1

    def cell(self, row: Row) -> str:
        """A dash where not every run has it: each cell is of the n runs that its row counts."""
        values = [self.of(record) for record in row.runs.values()]
        known = [] if None in values else [self.factor * value for value in values]
        return mean_std(known, self.unit, self.digits)


def _at(*keys: str) -> Callable[[dict], float | None]:
    def value(record):
        for key in keys:
            record = (record or {}).get(key)
        return record
    return value


def _rotated_only(record: dict) -> bool:
    return (record["config"]["distortion"] or "").startswith("rotation")


def _rotated_and_more(record: dict) -> bool:
    return not _rotated_only(record)


def _pose(key: str, where: Callable[[dict], bool] = bool) -> Callable[[dict], float | None]:
    """Of pose_recovery, where there is a transformer to undo the pose, and `where` says so."""
    def value(record):
        told = record["config"]["stn"] and where(record)
        return _at("pose_recovery", key)(record) if told else None
    return value


def _modulo_90(record: dict) -> float | None:
    """Share of images within 20 degrees of any quarter turn, from the histogram's 5-degree bins."""
    counts = _pose("histogram", _rotated_only)(record)
    if not counts:
        return None
    starts = [5 * k % 90 for k in range(len(counts))]
    near = [count for start, count in zip(starts, counts, strict=True) if not 20 <= start < 70]
    return sum(near) / sum(counts)


def _average_of_8(record: dict) -> float | None:
    """Mean accuracy over the 8 multiples of 45 degrees, which canonicalization papers report."""
    known = _at("against", "angle")(record)
    by_angle = dict(zip(known["values"], known["accuracy"], strict=True)) if known else {}
    eight = [by_angle.get(angle) for angle in range(-180, 180, 45)]
    return None if None in eight else statistics.mean(eight)


def _of_statistics(key: str) -> Callable[[dict], float | None]:
    """Of what the transformer does, where there is no known pose that would tell more."""
    def value(record):
        told = not record["config"]["stn"] or "pose_recovery" in record
        return None if told else _at("statistics", key, "mean")(record)
    return value


SHARE = "share of the upright ceiling"
SUITES = ("rotation45", "rotation90", "rotation", "rts", "disc", *FILTERED)
FURTHER = [  # other measurements of the same trained models
    Column("flip and shift TTA", _at("tta", "flip_shift")),
    Column("of the least certain fifth", _at("tta", "flip_shift_unsure")),
    Column("top-2 poses", _at("tta", "top_2_poses")),
    Column("top-4 poses", _at("tta", "top_4_poses")),
    Column("2 rotated views", _at("tta", "rotated_2")),
    Column("4 rotated views", _at("tta", "rotated_4")),
    Column("true pose (oracle)", _at("tta", "true_pose")),
    Column("mean of 8 angles", _average_of_8),
    *(Column(f"suite {name}", _at("suites", name)) for name in SUITES),
    Column("class changes at 45°", _at("invariance", "45", "changed")),
    Column("class changes at 90°", _at("invariance", "90", "changed")),
    Column("logits change at 90°", _at("invariance", "90", "logits"), digits=3),
]
TRANSFORMER = [  # what the transformer does to the test images
    Column("rotation error, median", _pose("median_rotation_error"), "°", 1),
    Column("rotation error, mean", _pose("mean_rotation_error"), "°", 1),
    Column("within 5°", _pose("within_5")),
    Column("within 22.5°", _pose("within_22_5")),
    Column("within 30°", _pose("within_30")),
    Column("modulo 90°, median", _pose("median_rotation_error_mod90", _rotated_only), "°", 1),
    Column("modulo 90°, within 20°", _modulo_90),
    Column("modulo 90°, within 22.5°", _pose("within_22_5_mod90", _rotated_only)),
    Column("scale error, median", _pose("median_abs_log_scale", _rotated_and_more)),
    Column("shift error, half-widths", _pose("median_shift", _rotated_and_more), "", 1, 2),
    Column("sampling scale", _of_statistics("sampling_scale"), "", 1, 2),
    Column("outside the picture", _of_statistics("outside")),
    Column("moved, half-widths", _of_statistics("moved"), "", 1, 2),
]


def main_cells(this: Study, row: Row) -> dict[str, str]:
    """The cells of the first table."""
    def accuracy(record):
        """The last epoch's, on validation images where a choice is made."""
        return record["history"][-1]["val_accuracy"] if this.choice else record["test"]["accuracy"]

    mflop = row.first.get("mflop")
    cells = {"arm": row.arm, "epochs": str(row.epochs),
             "parameters": f"{row.first['parameters']:,}",
             "MFLOP": "-" if mflop is None else f"{mflop:.0f}"}
    column = Column("validation accuracy" if this.choice else "test accuracy", accuracy)
    cells[column.title] = column.cell(row)
    for control in this.controls:
        cells[f"points above {control}"] = _points_above(row, control, accuracy, accuracy)
    seconds = [line["seconds"] for record in row.runs.values() for line in record["history"]]
    return cells | {"training accuracy": Column("", _at("train", "accuracy")).cell(row),
                    "n": str(len(row.runs)),
                    "s an epoch": f"{statistics.median(seconds):.1f}" if seconds else "-"}


def _points_above(row: Row, control: str, one: Callable, other: Callable) -> str:
    """Paired by seed: `one` of the row's records less `other` of the control's, in points."""
    pairs = [(one(record), other(row.controls[control][seed]))
             for seed, record in row.runs.items() if seed in row.controls.get(control, {})]
    return difference([(100 * a, 100 * b) for a, b in pairs if None not in (a, b)])


def cells_of(this: Study, row: Row) -> dict[str, str]:
    """Every number that is told of a row: column -> cell. README's numbers are among these."""
    share = Column(SHARE, lambda record: record["test"]["accuracy"] / row.ceiling
                   if row.ceiling else None)
    columns = (share, *FURTHER, *TRANSFORMER)
    return (main_cells(this, row) | flip_cells(this, row)
            | {column.title: column.cell(row) for column in columns})


def flip_cells(this: Study, row: Row) -> dict[str, str]:
    """Of predictions from an image and its mirror image, where all runs have them.

    Compared with the controls' likewise, and with their single view where that costs as much.
    """
    flip, single = _at("tta", "mirrored"), _at("test", "accuracy")
    mflop = [record.get("mirrored_mflop") for record in row.runs.values()]
    known = None not in mflop and all(flip(record) is not None for record in row.runs.values())
    cells = {"flip TTA": Column("", flip).cell(row) if known else "-",
             "MFLOP, flip TTA": f"{mflop[0]:.0f}" if known else "-"}
    for control in this.controls:
        runs = row.controls.get(control)
        as_much = known and runs and mflop[0] <= next(iter(runs.values()))["mflop"]
        cells[f"flip TTA, points above that of {control}"] = (
            _points_above(row, control, flip, flip) if known else "-")
        cells[f"flip TTA, points above {control}"] = (
            _points_above(row, control, flip, single) if as_much else "-")
    return cells


def study_tables(this: Study, rows: list[Row], among: list[Row] | None = None) -> str:
    """The tables of some rows: accuracy; other tests of the models; what their transformer does.

    among: all rows of the study, if not these; in what they differ besides, a column tells.
    """
    if not rows:
        return ""
    cells = [cells_of(this, row) for row in rows]
    varying = [key for key in ("dataset", "precision", "machine")
               if len({row.first[key] for row in among or rows}) > 1]
    for line, row in zip(cells, rows, strict=True):
        line |= {key: row.first[key] for key in varying}
    several = len({row.epochs for row in rows}) > 1
    parts = [_table(cells, [*main_cells(this, rows[0]), *varying])]
    # accuracies on test images, which no choice may see
    further = [] if this.choice else [SHARE, *flip_cells(this, rows[0]), *_titles(FURTHER)]
    for title, group in (("The same models, tested otherwise:", further),
                         ("What the transformer does to the test images:", _titles(TRANSFORMER))):
        told = [line for line in cells if any(line[name] != "-" for name in group)]
        columns = [name for name in group if any(line[name] != "-" for line in told)]
        if columns:
            parts += [title, _table(told, ["arm", *(["epochs"] if several else []), *columns])]
    return "\n\n".join(parts)


def class_table(rows: list[Row]) -> str:
    """Accuracy by class in percent, mean over the seeds, where the records name the classes."""
    lines, names = [], []
    for row in rows:
        tests = [record["test"] for record in row.runs.values() if "classes" in record["test"]]
        names = tests[0]["classes"] if tests else names
        shares = [[100 * line[k] / sum(line) for k, line in enumerate(test["confusion"])]
                  for test in tests]
        means = [f"{statistics.mean(seeds):.1f}" for seeds in zip(*shares, strict=True)]
        lines += [[row.arm, str(row.epochs), *means]] if tests else []
    return markdown(["arm", "epochs", *names], lines) if lines else ""


def _titles(columns: list[Column]) -> list[str]:
    return [column.title for column in columns]


def _table(cells: list[dict[str, str]], columns: list[str]) -> str:
    return markdown(columns, [[line[name] for name in columns] for line in cells])
