"""One experiment from start to end, and the record that it leaves: one JSON file a run."""

import datetime
import hashlib
import json
import os
import platform
from importlib.metadata import version

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import diagnostics
from .config import Config
from .data import Data, Split, load_data
from .data.dataset import distorted
from .pose_bins import AXES
from .stn import STNClassifier, build_model
from .training.checks import check_size, for_data
from .training.evaluation import (
    evaluate,
    flip_shift_views,
    mirrored_views,
    rotated_views,
    top_k_poses,
    true_pose,
    where_unsure,
)
from .training.loop import fit

LIBRARIES = ("torch", "numpy", "matplotlib")
OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # how its threads wait
VIEWS = (2, 4)  # poses, or turns, of test-time augmentation where a pose is known


def run(config: Config, checkpoint_dir=None,
        data: Data | None = None) -> tuple[STNClassifier, Data, dict]:
    """One experiment from start to end: the trained model, its data, and the record of it.

    The test accuracy is measured once, after the last epoch.
    """
    data = load_data(config) if data is None else data
    if data.test is None:
        raise ValueError(f"data: {data.name} has no test split, which is measured at the end")
    config = for_data(config, data)
    model = build_model(config, data)
    check_size("test", data.test, model)  # before hours of training, not after
    history = fit(model, data, config, checkpoint_dir)
    return model, data, record(config, data, model, history)


def record(config: Config, data: Data, model: STNClassifier, history: list[dict]) -> dict:
    """All that a table may tell of a run, as plain values; accuracies are fractions.

    config, dataset, seed, study and arm (None outside a study), machine, versions, threads, openmp,
    precision, date; parameters; mflop and mirrored_mflop (10^6 operations an image, forwards, of a
    single view and of `mirrored_views`); finished, epochs_done, training_seconds; test (loss in
    nats, classes, confusion: rows are true classes) and train, both after the last epoch, dropout
    off; history, as `fit` returns it; tta, accuracy by test-time augmentation; statistics of theta
    and of the sampling grid over the test images, mean and std, as `diagnostics.statistics` names
    them; pose_recovery where poses are known, as `diagnostics.PoseRecovery.summary` names it, and a
    histogram of rotation errors, by 5 degrees.
    """
    # training images have a new pose in every epoch: as many as there are test images will do
    train_split = (data.train if config.distortion is None
                   else distorted(data.train[:len(data.test)], config.distortion))
    test, train = evaluate(model, data.test), evaluate(model, train_split)
    measured = diagnostics.statistics(model, data.test.images)
    result = dict(
        study=None, arm=None, seed=config.seed,
        config=config.to_dict(),
        dataset=data.name,
        parameters=sum(p.numel() for p in model.parameters()),
        mflop=mflop(model), mirrored_mflop=mflop(model, mirrored_views),
        finished=len(history) == config.epochs,
        epochs_done=len(history),
        precision=history[-1]["precision"] if history else None,
        threads=torch.get_num_threads(),
        openmp={name: os.environ[name] for name in OPENMP if name in os.environ},
        training_seconds=sum(row["seconds"] for row in history),
        test=dict(accuracy=test.accuracy, loss=test.loss, images=len(data.test),
                  classes=list(data.classes), confusion=test.confusion.tolist()),
        train=dict(accuracy=train.accuracy, loss=train.loss, images=len(train_split)),
        statistics=diagnostics.summary(measured),
        history=history,
        tta={name: evaluate(model, data.test, predict=predict).accuracy
             for name, predict in _test_time_augmentations(config, data).items()},
        machine=machine(model.device),
        versions=dict(python=platform.python_version(),
                      **{name: version(name) for name in LIBRARIES}),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    recovery = diagnostics.pose_recovery(data.test.poses, measured.theta)
    if recovery is not None:
        result["pose_recovery"] = recovery.summary() | dict(histogram=recovery.histogram())
    return result


def _test_time_augmentations(config: Config, data: Data) -> dict:
    """Those that apply: name -> `predict` for `evaluate`."""
    views = dict(mirrored=mirrored_views) if config.flip else {}
    if config.flip and config.distortion is None:  # of a turned picture, shifted views are new
        views |= dict(flip_shift=flip_shift_views, flip_shift_unsure=where_unsure(flip_shift_views))
    poses = data.test.poses
    if poses is None or poses.shape[-1] != 3 or config.transform not in AXES:
        return views  # none is known, or it is no matrix
    views["true_pose"] = true_pose
    if not config.stn:
        views |= {f"rotated_{k}": rotated_views(k) for k in VIEWS}
    elif config.pose_bins and config.localization_row != "p4_mod90":
        views |= {f"top_{k}_poses": top_k_poses(k) for k in VIEWS}
    return views


def mflop(model: STNClassifier, predict=None) -> float:
    """Arithmetic of one image's way through `model`: 10^6 additions and multiplications.

    predict: by this test-time augmentation, as `evaluate` takes it.
    """
    image = torch.zeros(1, *model.input_shape, dtype=torch.uint8, device=model.device)
    batch = Split(image, torch.zeros(1, dtype=torch.int64, device=model.device))
    with diagnostics.evaluating(model), FlopCounterMode(display=False) as counter:
        predict(model, batch) if predict else model(image)
    return counter.get_total_flops() / 1e6


def machine(device: torch.device) -> str:
    """In words: "NVIDIA H200", or the processor with the number of cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU core{'s' if cores > 1 else ''}, {_processor()}"


def _processor() -> str:
    try:  # Linux has the marketing name here; platform.processor() is empty there
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file
                        if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def to_json(record: dict) -> str:
    """`record` as JSON; numbers that are not finite become null."""
    finite = json.loads(json.dumps(record), parse_constant=lambda constant: None)
    return json.dumps(finite, indent=1, allow_nan=False) + "\n"


def digest(text: str) -> str:
    """Eight letters that stand for a long text in a file name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
