"""fit and evaluate: one flat loop, metrics kept on the device and read once an epoch."""

import contextlib
import math
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import diagnostics, distortions
from .checkpoints import resume, save_checkpoint
from .steps import choose_precision, make_optimizer, make_step

# one line: what is left, how fast, and what the last complete epoch brought
PROGRESS = "{percentage:3.0f} % [{elapsed} < {remaining}, {rate_fmt}{postfix}]"

WATCHED = 256  # images, without their labels, on which the transformer is watched after each epoch
WARM_UP, TIMED = 5, 20  # steps: those before the clock starts, those on which the time of the whole run is foretold


class Metrics(NamedTuple):
    """What `evaluate` measures."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # fraction in [0, 1]
    confusion: torch.Tensor  # (classes, classes) int64 counts, rows: true class, columns: predicted


class NonFiniteLoss(RuntimeError):
    """Training produced NaN or infinity; the message names epoch and step and says what to try."""


def fit(model, data, config, checkpoint_dir=None, on_epoch_end=None):
    """Train `model` on `data.train` as `config` says; returns the history, one dict an epoch.

    Each dict holds epoch (from 1), train_loss, train_accuracy (as the batches came: augmented, dropout on, weights
    moving, under a pose_curriculum with many a true pose undone; the loss smoothed and with the terms of the
    transformer), val_loss and val_accuracy where there is a validation split, learning_rate and seconds.
    `on_epoch_end(model, history)` is called after each epoch. Ctrl-C (a notebook's stop button) and SIGTERM end
    training and return the history so far. The model is in evaluation mode then, and whenever it is handed out. A loss
    that is not finite raises NonFiniteLoss. ValueError where model, data and config do not go together.

    With `checkpoint_dir`, every epoch's end is kept there, and a run that was broken off goes on from it, to the same
    result bit for bit on the same CPU and versions (on CUDA: as far as cuDNN repeats itself): data order, dropout,
    augmentation and distortion depend on (config.seed, epoch) alone. The global random state is restored.
    """
    device = config.torch_device()
    model, train = model.to(device), data.train.to(device)
    if config.pose_weight and (config.distortion == "elastic" or (config.distortion is None and train.poses is None)):
        raise ValueError(f"pose_weight: {config.pose_weight} needs a pose that is known and a matrix: "
                         "dataset='glyphs', or a distortion other than 'elastic'")
    if config.pose_weight and config.distortion is None and (config.flip or config.shift):
        raise ValueError(f"pose_weight: {config.pose_weight} with flip={config.flip} and shift={config.shift}, which "
                         "make the known poses wrong; set flip=False and shift=0, or pose_weight=0")
    _check_fits(data, config)
    for name in ("stn", "pose_cells", "pose_head"):
        if getattr(model.config, name) != getattr(config, name):
            raise ValueError(f"{name}: {getattr(config, name)!r}, but the model was built with "
                             f"{getattr(model.config, name)!r}; build_model(config) makes one for this config")
    torch.set_flush_denormal(True)  # vanishing activations would make CPUs 5 to 50 times slower (pytorch#23862)
    optimizer = make_optimizer(model, config)
    same = dict(dataset=data.name, training_images=len(train))
    state = checkpoint_dir and resume(checkpoint_dir, model, optimizer, config, **same)
    history = state["history"] if state else []
    with _out_of_memory_explained(config):
        # a resumed run goes on in its own precision: a new measurement might choose another, and change the result
        precision = ((state or {}).get("precision")
                     or choose_precision(model, train.images[:config.batch_size], config))
    step = make_step(model, train, optimizer, config, precision)
    if state and state.get("scaler"):
        step.scaler.load_state_dict(state["scaler"])
    print(f"training on {device} in {precision}" + (f", resuming after epoch {len(history)} of {config.epochs}" if state
                                                    else ""))
    steps = math.ceil(len(train) / config.batch_size)
    progress = tqdm(total=config.epochs * steps, initial=len(history) * steps, unit="step", file=sys.stdout,
                    mininterval=0.5 if sys.stdout.isatty() else 5, bar_format=PROGRESS)
    can_save, told = True, set()
    try:
        with sigterm_as_interrupt():
            for epoch in range(len(history) + 1, config.epochs + 1):
                started = time.perf_counter()
                with (torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                      _out_of_memory_explained(config)):
                    loss, accuracy = train_epoch(step, epoch, progress)
                model.eval()  # or what on_epoch_end asks of it would move the running statistics of normalization
                row = dict(epoch=epoch, train_loss=loss, train_accuracy=accuracy)
                if data.val is not None:
                    val = evaluate(model, data.val)
                    row |= dict(val_loss=val.loss, val_accuracy=val.accuracy)
                history.append(row | dict(learning_rate=float(optimizer.param_groups[0]["lr"]), precision=precision,
                                          seconds=time.perf_counter() - started))
                if checkpoint_dir:
                    can_save = _save(checkpoint_dir, can_save, model, optimizer, history, config,
                                     **same, precision=precision, scaler=step.scaler.state_dict())
                progress.set_postfix_str(_summary(row, config.epochs))
                _warn(model, data.test.images[:WATCHED], told, progress, epoch)
                if on_epoch_end is not None:
                    on_epoch_end(model, history)
    except KeyboardInterrupt:
        progress.close()
        print(f"stopped; {len(history)} of {config.epochs} epochs are complete"
              + (f" and kept in {checkpoint_dir}" if checkpoint_dir and can_save and history else ""))
    finally:
        model.eval()
        progress.close()
    return history


def _check_fits(data, config):
    """Raise ValueError, naming the field, unless the model of `config` can take these images and labels."""
    channels, size = data.train.images.shape[1], data.train.images.shape[-1]
    if config.distortion is not None:
        size = distortions.DISTORTIONS[config.distortion].canvas_size(size)
    for field, needed in (("channels", channels), ("image_size", size)):
        if getattr(config, field) != needed:
            raise ValueError(f"{field}: {getattr(config, field)}, but {data.name} has pictures of {needed}; set that")
    if config.num_classes != len(data.classes):
        raise ValueError(f"num_classes: {config.num_classes}, but {data.name} has {len(data.classes)} classes")


def _save(folder, could_save, *content, **more):
    """save_checkpoint, but a full disk or a folder that is gone ends no training: told once, tried again each epoch."""
    try:
        save_checkpoint(folder, *content, **more)
    except KeyboardInterrupt:  # a stop in the midst of it: the epoch is complete, so keep it first
        with contextlib.suppress(OSError):
            save_checkpoint(folder, *content, **more)
        raise
    except OSError as error:
        if could_save:
            warnings.warn(f"checkpoint_dir: cannot write to {folder} ({error.strerror or error}); training goes on, "
                          "and tries again after each epoch", stacklevel=3)
        return False
    return True


@contextlib.contextmanager
def sigterm_as_interrupt():
    """Within it, a request to end the process (SIGTERM) is what Ctrl-C is; in the main thread only (Python's rule)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # not by raising SIGINT, which the shell has ignored in programs started with nohup or &
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set by Python


@contextlib.contextmanager
def _out_of_memory_explained(config):
    """Within it, running out of memory, as torch on any device puts it, is a MemoryError that says what to set."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        # a notebook keeps the last traceback, whose frames would hold the memory that the next try needs
        traceback.clear_frames(error.__traceback__)
        raise MemoryError(f"batch_size: {config.batch_size} does not fit into the memory of {config.torch_device()}; "
                          f"set a smaller one, such as {max(1, config.batch_size // 2)}") from error


def train_epoch(step, epoch, progress):
    """One pass over the training images by `step` (a Step); returns the mean loss and accuracy of the batches."""
    model, config = step.model, step.config
    model.train()
    torch.manual_seed(epoch_seed(config.seed, epoch))  # dropout
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))  # on the CPU: the same everywhere
    order = torch.randperm(len(step.train), generator=generator).to(step.device)
    step.draw(epoch, generator)
    losses, correct = [], torch.zeros((), dtype=torch.int64, device=step.device)
    batches = order.split(config.batch_size)
    for number, index in enumerate(batches, (epoch - 1) * len(batches)):
        step.set_progress(number / (config.epochs * len(batches)))
        loss, right = step(index)
        losses.append(loss)
        correct += right
        progress.update()
        if number == WARM_UP:
            since = _now(step.device)
        elif number == WARM_UP + TIMED and number < len(batches):  # all in this epoch
            _tell_how_long((_now(step.device) - since) / TIMED * (progress.total - progress.n), progress, step)
    losses = torch.stack(losses)  # the epoch's one synchronisation
    if not all(p.isfinite().all() for p in model.parameters()):
        losses[-1] = math.nan  # done by the last step, so no loss has shown it yet; it must not be kept as good
    if not losses.isfinite().all():
        number = (~losses.isfinite()).nonzero()[0].item()
        raise NonFiniteLoss(
            f"the loss became {losses[number].item()} in epoch {epoch}, step {number + 1} of {len(losses)}; try a "
            f"lower learning_rate (now {config.learning_rate}) or localization_lr_scale "
            f"(now {config.localization_lr_scale})")
    sizes = torch.full_like(losses, config.batch_size)
    sizes[-1] = len(order) - config.batch_size * (len(losses) - 1)
    return ((losses * sizes).sum() / len(order)).item(), correct.item() / len(order)


def _warn(model, images, told, progress, epoch):
    """Say what diagnostics.verdict finds wrong with the transformer on `images`, each fault once; told: those said."""
    if model.localization is None or images.shape[-1] != model.config.image_size:  # test images left undistorted
        return
    for text in diagnostics.verdict(diagnostics.survey(model, images)):
        fault = text.split(":")[0]
        if fault != "note" and fault not in told:
            progress.write(f"the transformer after epoch {epoch}: {text}")
            told.add(fault)


def _now(device):
    """The time, seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _tell_how_long(seconds, progress, step):
    """Say in words how long a training of some minutes will take; where it is hours, also what to do about that."""
    config, minutes = step.config, seconds / 60
    if minutes < 2:
        return
    words = f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
    advice = ("" if minutes < 60 else "; if that is too long, stop it now, and take a GPU, fewer epochs, a smaller "
              "width or a smaller preset")
    progress.write(f"{config.epochs} epochs will take about {words} on this machine ({step.device.type}){advice}")


def evaluate(model, split, batch_size=250, averaged=False, hypotheses=1):
    """Metrics of `model` on `split` (a Split), dropout off; the model's training mode is restored.

    averaged: test-time averaging over six views (`averaged_logits`); hypotheses: over so many poses (the model's
    `forward`). Either is another measurement, never to be mixed with the single view's.
    """
    if averaged and hypotheses != 1:
        raise ValueError(f"hypotheses: {hypotheses} with averaged=True; average over one of the two")
    device = model.mean.device
    classes = model.config.num_classes
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    with diagnostics.evaluating(model):
        for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
            images, labels = images.to(device), labels.to(device)
            logits = averaged_logits(model, images) if averaged else model(images, hypotheses)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    confusion = confusion.reshape(classes, classes).cpu()
    return Metrics(loss.item() / len(split), confusion.diagonal().sum().item() / len(split), confusion)


def averaged_logits(model, images):
    """Logits (B, classes), the mean over views of `images` (B, C, S, S): as they are, one pixel up left, down right.

    Each as it is and mirrored; the unshifted pair counts as much as the shifted two together (Jordan 2024).
    """
    pixels = torch.arange(images.shape[-1], device=images.device)
    # by index: F.pad takes no uint8 on some of the versions and devices that are served
    up_left, down_right = (images[..., at[:, None], at] for at in ((pixels + 1).clamp(max=len(pixels) - 1),
                                                                   (pixels - 1).clamp(min=0)))
    views = ((0.25, images), (0.125, up_left), (0.125, down_right))
    return sum(weight * (model(view) + model(view.flip(-1))) for weight, view in views)


def epoch_seed(seed, epoch):
    """One number for (seed, epoch), different for all epochs below 100,000 of all seeds."""
    return 100_000 * seed + epoch


def _summary(row, epochs):
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.3f}", f"train {row['train_accuracy']:.1%}"]
    if "val_accuracy" in row:
        parts.append(f"val {row['val_accuracy']:.1%}")
    return ", ".join(parts)
