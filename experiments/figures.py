"""Figures of studies: accuracy against the angle, and the rotation error."""

import statistics
from collections import Counter

from matplotlib.figure import Figure

from stn_cifar import plots

from .studies import Study
from .tables import Row, is_upright_control

HISTOGRAMS = 4  # one over another: more could not be told apart


def figures_of(name: str, this: Study, rows: list[Row]) -> dict[str, Figure]:
    """File stem -> figure: study-NAME-angle, study-NAME-error, of a study that has angles."""
    turned = [row for row in rows if not is_upright_control(row.first)]
    shown = shown_rows(turned)
    if not shown or not this.angles:
        return {}
    first = shown[0].first
    pictures = ", ".join(filter(None, (first["dataset"], first["config"]["distortion"])))
    one_budget = len({row.epochs for row in shown}) == 1
    title = f"{pictures} · study {name} · preset {this.preset}"
    title += f" · {first['epochs_done']} epochs" if one_budget else ""
    arms = {row.arm + ("" if one_budget else f", {row.epochs} epochs") + f" (n = {len(row.runs)})":
            row for row in shown}
    against = {arm: accuracy_against_angle(row) for arm, row in arms.items()}
    known = {arm: told for arm, told in against.items() if told}
    known = dict(list(known.items())[:len(plots.STYLES)])
    errors = {}
    for arm in known or arms:  # of the same arms, so that each has one colour in both
        counts = rotation_errors(arms[arm])
        drawn = [other for other in errors.values() if other]
        errors[arm] = [] if counts in drawn or len(drawn) == HISTOGRAMS else counts
    found = {}
    if known:
        found[f"study-{name}-angle"] = plots.robustness(known, title)
    if any(errors.values()):
        found[f"study-{name}-error"] = plots.rotation_errors(errors, title)
    return found


def shown_rows(rows: list[Row]) -> list[Row]:
    """The longest budget that more than one arm has with several seeds; all, where none has."""
    several = [row for row in rows if len(row.runs) > 1]
    budgets = Counter(row.epochs for row in several)
    longest = max((epochs for epochs, arms in budgets.items() if arms > 1), default=None)
    return [row for row in several if row.epochs == longest] or rows


def accuracy_against_angle(row: Row) -> dict:
    """The mean over an arm's seeds, at the angles that all were measured at; empty without any."""
    measured = [record.get("against", {}).get("angle") for record in row.runs.values()]
    if None in measured:
        return {}
    seeds = [dict(zip(one["values"], one["accuracy"], strict=True)) for one in measured]
    values = [angle for angle in seeds[0] if all(angle in seed for seed in seeds)]
    accuracy = [statistics.mean(seed[angle] for seed in seeds) for angle in values]
    return dict(angle=dict(values=values, accuracy=accuracy)) if values else {}


def rotation_errors(row: Row) -> list[int]:
    """The histograms of an arm's seeds, added up; empty where no transformer undoes a pose."""
    counts = [record["pose_recovery"]["histogram"] for record in row.runs.values()
              if record["config"]["stn"] and record.get("pose_recovery", {}).get("histogram")]
    return [sum(seeds) for seeds in zip(*counts, strict=True)]
