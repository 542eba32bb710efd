"""Run what is missing of a study: one record a run."""

from pathlib import Path

import torch

from stn_cifar import Config, Split, diagnostics, distortions, evaluate, experiment, load_data
from stn_cifar.console import say
from stn_cifar.data.suites import suite
from stn_cifar.training.precision import resolve

from . import records, studies, suites
from .study import Study

ANGLE_IMAGES = 1000  # test images, turned by each of a study's angles
DONE, BUSY, STOPPED = "done", "busy", "stopped"  # what becomes of a run


def run_study(name: str, results: Path = records.RESULTS, shard: str = "1/1",
              checkpoint_dir: Path | None = None, epochs: int | None = None, **overrides) -> bool:
    """Run what is missing of the study `name`, records into `results`/`name`; False if stopped.

    shard: "2/8" takes every eighth run. checkpoint_dir: each run keeps its epochs in a folder of
    its own there, and goes on from them. epochs: this budget in place of the study's. overrides:
    Config fields set in every arm. A run is there already if a record of the study has its config's
    content; what another process is at is left to it.
    """
    this = studies.by_name(name)
    for run in this.runs(shard, epochs):
        outcome, text = run_one(this, name, run, results, checkpoint_dir, **overrides)
        say(text)
        if outcome == STOPPED:
            return False
    return True


def run_one(this: Study, name: str, run: tuple[str, int, int], results: Path,
            checkpoint_dir: Path | None = None, **overrides) -> tuple[str, str]:
    """Make the record of one run, (arm, epochs, seed), of `this`; what became of it, and in words.

    DONE: the record is there, now or already. BUSY: another process is at it. STOPPED: by a
    person, after the epochs that `checkpoint_dir` holds. What goes wrong is raised.
    """
    arm, budget, seed = run
    config = this.config(arm, budget, seed, **overrides)
    precision = resolve(config.precision, config.torch_device())
    path = records.place(results, name, arm, config.to_dict(), precision)
    with records.claim(path) as ours:
        if not ours:
            return BUSY, f"another process is at it: {path}"
        identity = records.identity(config.to_dict(), precision)
        if there := _find(this, path.parent, identity, seed):
            return DONE, f"there already: {there}"
        say(f"{name}: {arm}, {budget} epochs, seed {seed}")
        folder = checkpoint_dir and Path(checkpoint_dir) / name / path.stem
        model, _, record = experiment.run(config, folder)
        if not record["finished"]:
            return STOPPED, (f"stopped after {record['epochs_done']} of {budget} epochs"
                             + (f"; the same command goes on from {folder}" if folder else ""))
        record |= dict(study=name, arm=arm)
        records.write(record, path)  # before anything else that may fail
        if more := more_tests(this, model, config):
            records.write(record | more, path)
        seconds = sum(row["seconds"] for row in record["history"])
        return DONE, f"{record['test']['accuracy']:.1%}, {seconds:.0f} s of training: {path}"


def _find(this: Study, folder: Path, identity: frozenset, seed: int) -> Path | None:
    """The record of this run in `folder`, under whatever name; what is no record is told.

    One that lacks what `this` tests besides is of a run that was ended before it: it is made again,
    from the last checkpoint where there is one.
    """
    asked = {key for key, wanted in (("suites", this.suites), ("against", this.angles)) if wanted}
    for path in sorted(folder.glob("*.json")):
        try:
            record = records.read(path)
        except records.RecordError as error:
            say(f"note: {error}; it counts as missing")
            continue
        ours = record["seed"] == seed and records.identity_of(record) == identity
        if ours and asked <= record.keys():
            return path
    return None


def more_tests(this: Study, model, config: Config) -> dict:
    """What the study asks of a trained model besides: accuracy on suites, and against the angle."""
    if not (this.suites or this.angles):
        return {}
    measured, test = {}, load_data(config.replace(distortion=None)).test
    if this.suites:
        measured["suites"] = {}
        for name in this.suites:
            images, theta = suite(test.images, suites.FILTERED.get(name, name))
            measured["suites"][name] = evaluate(model, Split(images, test.labels, theta)).accuracy
    if this.angles:
        few = test[:ANGLE_IMAGES]
        accuracies = diagnostics.accuracy_against(model, few, "angle", this.angles)
        measured["against"] = dict(angle=dict(values=list(this.angles), accuracy=accuracies))
        measured["invariance"] = {str(angle): invariance(model, few.images, angle)
                                  for angle in (45, 90)}
    return measured


def invariance(model, images, angle: float) -> dict:
    """How far `model` is from giving a turned picture the logits of the same picture upright.

    logits: mean distance between them over the upright's mean norm; changed: share of `images`
    (uint8, N) of which another class is predicted.
    """
    upright, turned = (logits_of(model, distortions.apply(images, distortions.sample_params(
        "rotation", len(images), torch.Generator(), angle=turn).to(images.device)))
        for turn in (0.0, angle))
    distance = (turned - upright).norm(dim=1).mean() / upright.norm(dim=1).mean()
    changed = (turned.argmax(1) != upright.argmax(1)).float().mean()
    return dict(logits=distance.item(), changed=changed.item())


def logits_of(model, images) -> torch.Tensor:
    """Logits (N, classes) of `images`, in evaluation mode."""
    with diagnostics.evaluating(model):
        return torch.cat([model(part.to(model.device)).float() for part in images.split(500)])
