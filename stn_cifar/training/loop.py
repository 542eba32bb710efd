"""fit: one flat loop, metrics kept on the device and read once an epoch."""

import contextlib
import math
import os
import time
import warnings
import zlib
from collections.abc import Callable

import torch

from .. import diagnostics
from ..config import Config
from ..console import progress_bar, say
from ..data import Data
from ..data.dataset import NAMES
from ..seeding import epoch_seed, seeded
from ..stn import STNClassifier
from .captured import make_step
from .checkpoints import claim, resume, save_checkpoint
from .checks import check_together
from .evaluation import evaluate
from .optim import make_optimizer, set_learning_rate
from .precision import resolve

MONITORED = 256  # images, without their labels, on which the transformer is watched


class NonFiniteLoss(RuntimeError):
    """Training produced NaN or infinity; the message names epoch and step and says what to try."""


def fit(model: STNClassifier, data: Data, config: Config,
        checkpoint_dir: str | os.PathLike | None = None,
        on_epoch_end: Callable[[STNClassifier, list[dict]], object] | None = None) -> list[dict]:
    """Train `model` on `data.train` as `config` says; returns the history, one dict an epoch.

    Each dict holds epoch (from 1), train_loss, train_accuracy (as the batches came: augmented,
    dropout on, weights moving, under teacher forcing with true poses undone; the loss smoothed and
    with the terms of the transformer), val_loss and val_accuracy where there is a validation split,
    learning_rate, precision and seconds. `on_epoch_end(model, history)` is called after each epoch.
    Ctrl-C (a notebook's stop button) ends training and returns the history so far. The model is in
    evaluation mode then, and whenever it is handed out.

    On CUDA the step becomes a graph after a few steps (captured.CapturedStep): several times as
    fast, but Python in the model, such as hooks, runs no more.

    With `checkpoint_dir` every epoch's end is kept there, and a run that was broken off goes on
    from it, to the same result bit for bit on the same device, versions and number of threads: data
    order, dropout, augmentation and distortion depend on (config.seed, epoch) alone. (Not so in
    fp32 on CUDA, where cuDNN adds up in another order each time; measured on an H200.)

    The process is left as it was found: random state, denormal numbers. Raises ValueError where
    model, data and config do not go together; NonFiniteLoss; CheckpointError.
    """
    fitted = check_together(model, data, config)
    if fitted != config:
        say(f"{data.name}: its images are in known poses already; distortion="
            f"{config.distortion!r}, flip and shift are left out")
    config = fitted
    upright = [name for name in ("val", "test")
               if config.distortion and (split := getattr(data, name)) and split.poses is None]
    if upright:
        say(f"NOTE: training images are distorted ({config.distortion}), {' and '.join(upright)} "
            "are not: stn_cifar.data.distorted(split, distortion) does it")
    model.config = model.config or config
    device = config.torch_device()
    claimed = claim(checkpoint_dir) if checkpoint_dir else contextlib.nullcontext()
    # torch trains as it does by default, whatever stands around `fit`
    with (torch.inference_mode(False), torch.enable_grad(),
          torch.autocast(device.type, enabled=False), _denormals_flushed(), claimed as folder):
        return _fit(model, data, config, device, folder, on_epoch_end)


@contextlib.contextmanager
def _denormals_flushed():
    """Vanishing activations would make CPUs 5 to 50 times slower (pytorch#23862)."""
    were_kept = (torch.full((1,), 1e-38) * 0.01).item() != 0  # there is no getter
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not were_kept)


def step_options(config: Config) -> dict:
    """What Step takes of `config`."""
    return dict(augmentation=dict(flip=config.flip, shift=config.shift, cutout=config.cutout),
                distortion=config.distortion, label_smoothing=config.label_smoothing,
                loss_weights=config.loss_weights(), max_scale=config.max_scale)


def _fit(model, data, config, device, folder, on_epoch_end):
    model, train = model.to(device), data.train.to(device)
    precision = resolve(config.precision, device)
    # fused SGD is faster, and a CUDA graph needs it; not with fp16: where the first step overflows,
    # as loss scaling lets it, it would take its momentum from memory that nobody has written to
    fused = True if device.type in ("cpu", "cuda") and precision != "fp16" else None
    optimizer = make_optimizer(model, config.learning_rate, config.localization_lr_scale,
                               config.momentum, config.weight_decay, fused)
    step = make_step(model, train, optimizer, precision, **step_options(config))
    same = dict(dataset=data.name, training_images=len(train), classes=list(data.classes),
                input_shape=list(model.input_shape), num_classes=model.num_classes,
                transformer=model.transformer.description(), by_hand=model.by_hand,
                precision=precision)
    # the built-in sets are known by name; glyphs may differ in a grey level between machines
    if folder is not None and data.name not in NAMES.values():
        same |= dict(training_data=_checksum(data.train))
    state = folder and resume(folder, model, optimizer, config, **same)
    history = state["history"] if state else []
    if state and state.get("scaler"):
        step.scaler.load_state_dict(step.scaler.state_dict() | state["scaler"])
    emulated = device.type == "cpu" and precision == "bf16" != resolve("auto", device)
    say(f"training on {device} in {precision}"
        + (" (torch sees no instructions for it here: fp32 should be faster)" if emulated else "")
        + (f", resuming after epoch {len(history)} of {config.epochs}" if state else ""))
    steps = len(_batches(torch.arange(len(train)), config.batch_size))
    progress = progress_bar(config.epochs * steps, len(history) * steps)
    keep = _Keeper(folder)
    monitor = _Monitor(data.test or data.train, progress)
    try:
        for epoch in range(len(history) + 1, config.epochs + 1):
            started = time.perf_counter()
            loss, accuracy = train_epoch(step, epoch, config, progress)
            row = dict(epoch=epoch, train_loss=loss, train_accuracy=accuracy)
            if data.val is not None:
                val = evaluate(model, data.val)
                row |= dict(val_loss=val.loss if math.isfinite(val.loss) else None,
                            val_accuracy=val.accuracy)
            history.append(row | dict(learning_rate=float(optimizer.param_groups[0]["lr"]),
                                      precision=precision, seconds=time.perf_counter() - started))
            keep(model, optimizer, history, config, **same, scaler=step.scaler.state_dict())
            progress.set_postfix_str(_summary(row, config.epochs))
            monitor(model, epoch)
            if on_epoch_end is not None:
                on_epoch_end(model, history)
    except KeyboardInterrupt:
        progress.close()
        say(f"stopped; {len(history)} of {config.epochs} epochs are complete"
            + (f" and kept in {folder}" if keep.works and history else ""))
    finally:
        model.eval()
        progress.close()
    return history


def train_epoch(step, epoch, config, progress):
    """One pass over the training images by `step`; (mean loss, accuracy) of its batches.

    The model is in evaluation mode afterwards.
    """
    step.model.train()
    seed = epoch_seed(config.seed, epoch)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same everywhere
    order = torch.randperm(len(step.train), generator=generator).to(step.device)
    step.sample_epoch(epoch, config.seed, generator)
    losses, correct = [], torch.zeros((), dtype=torch.int64, device=step.device)
    batches = _batches(order, config.batch_size)
    total = config.epochs * len(batches)
    with seeded(seed, step.device):  # dropout, teacher forcing
        for number, index in enumerate(batches, (epoch - 1) * len(batches)):
            done = number / total
            set_learning_rate(step.optimizer, done, config.schedule, config.warmup)
            loss, right = step(index, config.teacher_forcing * (1 - done))
            losses.append(loss)
            correct += right
            progress.update()
    step.model.eval()  # or what is asked of it next would move normalization's statistics
    losses = torch.stack(losses)  # the epoch's one synchronization
    statistics = (value for name, value in step.model.named_buffers()
                  if name.endswith(("running_mean", "running_var")))  # of normalization
    if not all(value.isfinite().all() for value in (*step.model.parameters(), *statistics)):
        losses[-1] = math.nan  # done by the last step: no loss has shown it yet
    if not losses.isfinite().all():
        number = (~losses.isfinite()).nonzero()[0].item()
        raise NonFiniteLoss(
            f"the loss became {losses[number].item()} in epoch {epoch}, step {number + 1} of "
            f"{len(losses)}; try a lower learning_rate (now {config.learning_rate}) or "
            f"localization_lr_scale (now {config.localization_lr_scale})")
    sizes = losses.new_tensor([len(index) for index in batches])
    return ((losses * sizes).sum() / len(order)).item(), correct.item() / len(order)


def _batches(order, size):
    """`order` in batches of `size`, the last one smaller.

    One image alone joins the batch before: normalization over a batch needs more than one value.
    """
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _checksum(split):
    """CRC-32 of all that a split holds: other images, labels or poses are another run."""
    total = 0
    for tensor in (split.images, split.labels, split.poses):
        if tensor is not None:
            total = zlib.crc32(tensor.cpu().contiguous().numpy(), total)
    return total


class _Keeper:
    """Saves checkpoints; a full disk or a lost folder is told once, and ends no training."""

    def __init__(self, folder):
        self.folder, self.works = folder, folder is not None

    def __call__(self, *content, **more):
        if self.folder is None:
            return
        try:
            save_checkpoint(self.folder, *content, **more)
            self.works = True
        except KeyboardInterrupt:  # a stop in the midst of it: the epoch is complete, so keep it
            with contextlib.suppress(OSError):
                save_checkpoint(self.folder, *content, **more)
            raise
        except OSError as error:
            if self.works:
                warnings.warn(f"checkpoint_dir: cannot write to {self.folder} "
                              f"({error.strerror or error}); training goes on, and tries again "
                              "after each epoch", stacklevel=3)
            self.works = False


class _Monitor:
    """Says what diagnostics.findings finds wrong with the transformer, each fault once."""

    def __init__(self, split, progress):
        self.images, self.progress, self.said = split.images[:MONITORED], progress, set()

    def __call__(self, model, epoch):
        fits = tuple(self.images.shape[1:]) == model.input_shape
        if not (fits and any(True for _ in model.transformer.parameters())):
            return  # undistorted test images on a larger canvas; the control
        for text in diagnostics.findings(diagnostics.statistics(model, self.images)):
            fault = text.split(":")[0]
            if fault != "note" and fault not in self.said:
                self.progress.write(f"the transformer after epoch {epoch}: {text}",
                                    file=self.progress.fp)
                self.said.add(fault)


def _summary(row, epochs):
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.3f}",
             f"train {row['train_accuracy']:.1%}"]
    if "val_accuracy" in row:
        parts.append(f"val {row['val_accuracy']:.1%}")
    return ", ".join(parts)
