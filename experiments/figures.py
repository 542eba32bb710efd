"""Figures of studies: accuracy against the angle, and the rotation error."""

import statistics

from matplotlib.figure import Figure

from stn_cifar import plots

from .studies import Study
from .tables import Row

HISTOGRAMS = 4  # one over another: more could not be told apart

def figures_of(name: str, this: Study, rows: list[Row]) -> dict[str, Figure]:
    """File stem -> figure: study-NAME-angle, study-NAME-error, of a study that has angles."""
    shown = shown_rows(rows)
    if not shown or not this.angles:
        return {}
    first = shown[0].first
    pictures = ", ".join(filter(None, (first["dataset"], first["config"]["distortion"])))
    title = f"{pictures} · study {name} · preset {this.preset} · {first['epochs_done']} epochs"
    arms = {f"{row.arm} (n = {len(row.runs)})": row for row in shown}
    against = {arm: accuracy_against_angle(row) for arm, row in arms.items()}
    errors = {}
    for arm, row in arms.items():  # arms that differ in the classifier alone are drawn once
        if (counts := rotation_errors(row)) not in errors.values():
            errors[arm] = counts
    found = {}
    for kind, draw, measured, most in (("angle", plots.robustness, against, len(plots.STYLES)),
                                       ("error", plots.rotation_errors, errors, HISTOGRAMS)):
        if known := [item for item in measured.items() if item[1]]:
            found[f"study-{name}-{kind}"] = draw(dict(known[:most]), title)
    return found


def shown_rows(rows: list[Row]) -> list[Row]:
    """The longest budget that more than one arm has with several seeds, else the longest of all."""
    budgets = sorted({row.epochs for row in rows}, reverse=True)
    replicated = [budget for budget in budgets
                  if sum(row.epochs == budget and len(row.runs) > 1 for row in rows) > 1]
    shown = [row for row in rows if row.epochs == (replicated or budgets or [None])[0]]
    return [row for row in shown if len(row.runs) > 1] if replicated else shown


def accuracy_against_angle(row: Row) -> dict:
    """The mean over an arm's seeds, as plots.robustness takes it; empty where none was measured."""
    measured = [record["against"]["angle"] for record in row.runs.values() if "against" in record]
    if not measured or any(one["values"] != measured[0]["values"] for one in measured):
        return {}
    accuracies = zip(*(one["accuracy"] for one in measured), strict=True)
    return dict(angle=dict(values=measured[0]["values"],
                           accuracy=list(map(statistics.mean, accuracies))))


def rotation_errors(row: Row) -> list[int]:
    """The histograms of an arm's seeds, added up; empty where no transformer undoes a pose."""
    counts = [record["pose_recovery"]["histogram"] for record in row.runs.values()
              if record["config"]["stn"] and record.get("pose_recovery", {}).get("histogram")]
    return [sum(seeds) for seeds in zip(*counts, strict=True)]
