"""One experiment from start to end, and the record that it leaves: one JSON a run, in results/."""

import datetime
import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy
import torch

from . import diagnostics
from .config import PRESETS, Config
from .data import Data, distorted, load_data
from .stn import STNClassifier, build_model
from .training import evaluate, fit

RESULTS = Path("results")
LONGEST = 231  # characters of a label: file systems take names of 255 bytes, and endings follow
TORCHVISION = version("torchvision")  # not imported for that, which would take half a second
ALL_ROUND = ("rotation", "similarity")  # distortions that turn by any angle
HYPOTHESES = (2, 4)  # poses looked at in a measurement of its own, where a pose is known: see STNClassifier.forward


def run(config: Config, checkpoint_dir=None, watch=None) -> tuple[STNClassifier, Data, dict]:
    """One experiment from start to end: the trained model, its data, and the record of it for `save`.

    The test images' labels are looked at once, after the last epoch. watch(model, data), with the untrained model,
    gives an `on_epoch_end` for `fit`.
    """
    data = load_data(config)
    model = build_model(config)
    history = fit(model, data, config, checkpoint_dir, watch and watch(model, data))
    return model, data, record(config, data, model, history)


def record(config: Config, data: Data, model: STNClassifier, history: list[dict]) -> dict:
    """All that is worth keeping of a run, as plain values: config, machine, versions, history, final metrics."""
    # training images have a new pose in every epoch: as many of them as there are test images tell enough
    train_split = data.train if config.distortion is None else distorted(data.train[:len(data.test)], config)
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
        train=dict(accuracy=train.accuracy, loss=train.loss, images=len(train_split)),  # dropout off
        theta=diagnostics.summary(seen),
        history=history,
        machine=machine(config),
        versions=dict(python=platform.python_version(), torch=torch.__version__, numpy=numpy.__version__,
                      torchvision=TORCHVISION, matplotlib=matplotlib.__version__),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    # trained on mirrored, upright pictures, so the views of test-time averaging are nothing new to it
    if config.flip and config.distortion is None:
        averaged = evaluate(model, data.test, averaged=True)
        result["test_averaged"] = dict(accuracy=averaged.accuracy, loss=averaged.loss)
    # without a transformer it turns pictures all the way round: of use only where they come so
    if data.test.poses is not None and config.pose_span == "circle" and (config.pose_cells if config.stn else config.distortion in ALL_ROUND):
        result["test_hypotheses"] = {str(count): evaluate(model, data.test, hypotheses=count).accuracy
                                     for count in HYPOTHESES}
    recovery = diagnostics.pose_recovery(data.test.poses, seen.theta)
    if recovery is not None:
        result["pose_recovery"] = recovery.summary() | dict(histogram=recovery.histogram())
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
    """A file name's stem for a run: preset, data set, every field that differs from the preset, seed.

    Where that is too long for a file system, its end gives way to a digest of it; the record holds the whole config.
    """
    stem = "-".join([config.name, dataset.lower().replace("-", ""), *changed_fields(config), f"seed{config.seed}"])
    if len(stem) <= LONGEST:
        return stem
    end = f"-{hashlib.sha256(stem.encode()).hexdigest()[:12]}-seed{config.seed}"
    return stem[:LONGEST - len(end)] + end


def save(result: dict, folder: Path = RESULTS) -> Path:
    """Write a record of a run into `folder`; returns the file's path."""
    stem = label(Config(**result["config"]), result["dataset"])
    # a run that was stopped must not take the place of a finished one
    return write(result, Path(folder) / f"{stem}{'' if result['finished'] else '-stopped'}.json")


def write(result: dict, path: Path) -> Path:
    """Write a record to `path`, whose folder is made where it is missing; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)  # whoever reads meanwhile sees the old record or the new one, never half
    return path


def load_results(folder: Path = RESULTS) -> list[dict]:
    """All records of finished runs in `folder`, in the order of their file names."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    return [r for r in records if r.get("finished")]
