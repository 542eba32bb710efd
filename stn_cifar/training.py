"""fit and evaluate: one flat loop, metrics kept on the device and read once an epoch."""

import contextlib
import math
import signal
import statistics
import sys
import threading
import time
import traceback
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import distortions, transforms
from .checkpoints import resume, save_checkpoint

# one line: what is left, how fast, and what the last complete epoch brought
PROGRESS = "{percentage:3.0f} % [{elapsed} < {remaining}, {rate_fmt}{postfix}]"


class Metrics(NamedTuple):
    """What `evaluate` measures."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # fraction in [0, 1]
    confusion: torch.Tensor  # (classes, classes) int64 counts, rows: true class, columns: predicted


class NonFiniteLoss(RuntimeError):
    """Training produced NaN or infinity; the message names epoch and step and says what to try."""


def fit(model, data, config, checkpoint_dir=None, on_epoch_end=None):
    """Train `model` on `data.train` as `config` says; returns the history, one dict an epoch.

    Each dict holds epoch (from 1), train_loss, train_accuracy (as the batches came: dropout on, weights moving),
    val_loss and val_accuracy where there is a validation split, learning_rate and seconds.
    `on_epoch_end(model, history)` is called after each epoch. Ctrl-C (a notebook's stop button) and SIGTERM end
    training and return the history so far. A loss that is not finite raises NonFiniteLoss.

    With `checkpoint_dir`, every epoch's end is kept there, and a run that was broken off goes on from it, to the same
    result bit for bit on the same device and versions: data order, dropout and distortion depend on
    (config.seed, epoch) alone. The global random state is restored.
    """
    device = config.torch_device()
    model, train = model.to(device), data.train.to(device)
    if config.pose_weight and (config.distortion == "elastic" or (config.distortion is None and train.poses is None)):
        raise ValueError(f"pose_weight: {config.pose_weight} needs a pose that is known and a matrix: "
                         "dataset='glyphs', or a distortion other than 'elastic'")
    torch.set_flush_denormal(True)  # vanishing activations would make CPUs 5 to 50 times slower (pytorch#23862)
    optimizer = make_optimizer(model, config)
    same = dict(dataset=data.name, training_images=len(train))
    state = checkpoint_dir and resume(checkpoint_dir, model, optimizer, config, **same)
    history = state["history"] if state else []
    with _out_of_memory_explained(config):
        # a resumed run goes on in its own precision: a new measurement might choose another, and change the result
        precision = state["precision"] if state else choose_precision(model, train.images[:config.batch_size], config)
    if state:
        print(f"resuming after epoch {len(history)} of {config.epochs}")
    steps = math.ceil(len(train) / config.batch_size)
    progress = tqdm(total=config.epochs * steps, initial=len(history) * steps, unit="step", file=sys.stdout,
                    mininterval=0.5 if sys.stdout.isatty() else 5, bar_format=PROGRESS)
    can_save = True
    try:
        with sigterm_as_interrupt():
            for epoch in range(len(history) + 1, config.epochs + 1):
                started = time.perf_counter()
                with (torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                      _out_of_memory_explained(config)):
                    loss, accuracy = train_epoch(model, train, optimizer, config, precision, epoch, progress)
                row = dict(epoch=epoch, train_loss=loss, train_accuracy=accuracy)
                if data.val is not None:
                    val = evaluate(model, data.val)
                    row |= dict(val_loss=val.loss, val_accuracy=val.accuracy)
                history.append(row | dict(learning_rate=optimizer.param_groups[0]["lr"],
                                          seconds=time.perf_counter() - started))
                if checkpoint_dir:
                    can_save = _save(checkpoint_dir, can_save, model, optimizer, history, config,
                                     **same, precision=precision)
                progress.set_postfix_str(_summary(row, config.epochs))
                if on_epoch_end is not None:
                    on_epoch_end(model, history)
    except KeyboardInterrupt:
        progress.close()
        print(f"stopped; {len(history)} of {config.epochs} epochs are complete"
              + (f" and kept in {checkpoint_dir}" if checkpoint_dir and can_save and history else ""))
    finally:
        progress.close()
    return history


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


def train_epoch(model, train, optimizer, config, precision, epoch, progress):
    """One pass over `train` (a Split); returns the mean loss and accuracy of the batches."""
    model.train()
    torch.manual_seed(epoch_seed(config.seed, epoch))  # dropout
    device = train.images.device
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))  # on the CPU: the same everywhere
    order = torch.randperm(len(train), generator=generator).to(device)
    drawn = config.distortion and distortions.draw(config.distortion, len(train), generator).to(device)
    losses, correct = [], torch.zeros((), dtype=torch.int64, device=device)
    batches = order.split(config.batch_size)
    for step, index in enumerate(batches, (epoch - 1) * len(batches)):
        set_learning_rate(optimizer, config, step / (config.epochs * len(batches)))
        images, labels = train.images[index], train.labels[index]
        pose = None if train.poses is None else train.poses[index]
        if drawn is not None:
            images, pose = distortions.apply(images, drawn[index]), drawn.theta[index]
        with autocast(device, precision):
            alignment = model.align(model.normalize(images))
            logits = model.classifier(alignment.warped).float()
        loss = F.cross_entropy(logits, labels) + transformer_loss(alignment.grid, pose, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        correct += (logits.argmax(1) == labels).sum()
        progress.update()
    losses = torch.stack(losses)  # the epoch's one synchronisation
    if not all(p.isfinite().all() for p in model.parameters()):
        losses[-1] = math.nan  # done by the last step, so no loss has shown it yet; it must not be kept as good
    if not losses.isfinite().all():
        step = (~losses.isfinite()).nonzero()[0].item()
        raise NonFiniteLoss(
            f"the loss became {losses[step].item()} in epoch {epoch}, step {step + 1} of {len(losses)}; try a lower "
            f"learning_rate (now {config.learning_rate}) or localization_lr_scale (now {config.localization_lr_scale})")
    sizes = torch.full_like(losses, config.batch_size)
    sizes[-1] = len(order) - config.batch_size * (len(losses) - 1)
    return ((losses * sizes).sum() / len(order)).item(), correct.item() / len(order)


def set_learning_rate(optimizer, config, done):
    """Set each group's learning rate for a run of which the share `done`, in [0, 1), lies behind."""
    if config.schedule == "linear":
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - done)


def transformer_loss(grid, pose, config):
    """The terms of the loss that concern the transformer, from its sampling grid (B, H, W, 2): a scalar, or 0.

    outside: mean distance by which samples lie outside the picture, half-widths.
    identity: mean squared distance of samples from where the identity would put them, half-widths squared.
    scale: mean squared excess of |log scale| over log max_scale; scale: the grid's spread over the identity's.
    pose: mean squared distance of samples from where they would lie had the known pose been undone exactly.
    All read the grid alone, so they serve every family.
    """
    loss = 0
    if config.outside_weight:
        loss += config.outside_weight * F.relu(grid.abs() - 1).mean()
    still = transforms.identity_grid(grid)
    if config.identity_weight:
        loss += config.identity_weight * (grid - still).square().sum(-1).mean()
    if config.scale_weight:
        log_scale = 0.5 * (transforms.spread(grid) / transforms.spread(still)).log()
        loss += config.scale_weight * F.relu(log_scale.abs() - math.log(config.max_scale)).square().mean()
    if config.pose_weight:
        undone = transforms.apply(pose, grid)  # applied(answered(p)): p itself, where all is undone
        loss += config.pose_weight * (undone - still).square().sum(-1).mean()
    return loss


def autocast(device, precision):
    """The autocast context of `precision`: "fp32", "bf16" or "fp16"."""
    dtype = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def choose_precision(model, images, config):
    """The precision that `config.precision` stands for here: "auto" times a few steps of each and takes the faster.

    Small networks gain nothing on many machines, and bf16 without hardware for it is slower than float32.
    """
    if config.precision != "auto":
        return config.precision
    # a distortion puts them on a larger canvas; speed does not depend on what they show
    images = images.new_zeros(len(images), config.channels, config.image_size, config.image_size)
    # cards before compute capability 8.0 emulate bf16, slowly, and claim to support it (pytorch#148322)
    old_card = images.is_cuda and torch.cuda.get_device_capability(images.device) < (8, 0)
    narrow = "fp16" if old_card else "bf16"
    seconds = {precision: [] for precision in ("fp32", narrow)}
    was_training = model.training
    model.eval()  # no dropout: the random state stays as it is
    for _ in range(7):
        for precision in seconds:
            started = time.perf_counter()
            with autocast(images.device, precision):
                logits = model.classifier(model.align(model.normalize(images)).warped)
            logits.float().sum().backward()
            model.zero_grad(set_to_none=True)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds[precision].append(time.perf_counter() - started)
    model.train(was_training)
    fp32, other = (statistics.median(times[2:]) for times in seconds.values())  # the first two are warm-up
    return narrow if other < 0.9 * fp32 else "fp32"


@torch.no_grad()
def evaluate(model, split, batch_size=1000):
    """Metrics of `model` on `split` (a Split), dropout off; the model's training mode is restored."""
    was_training, device = model.training, model.mean.device
    model.eval()
    classes = model.config.num_classes
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    model.train(was_training)
    confusion = confusion.reshape(classes, classes).cpu()
    return Metrics(loss.item() / len(split), confusion.diagonal().sum().item() / len(split), confusion)


def make_optimizer(model, config):
    """SGD with the localization network in a group of its own, slower by `localization_lr_scale`."""
    rates = {model.classifier: config.learning_rate}
    if model.localization is not None:
        rates[model.localization] = config.learning_rate * config.localization_lr_scale
    groups = [dict(params=list(part.parameters()), lr=rate, initial_lr=rate) for part, rate in rates.items()]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum,
                           nesterov=config.momentum > 0, weight_decay=config.weight_decay)


def epoch_seed(seed, epoch):
    """One number for (seed, epoch), different for all epochs below 100,000 of all seeds."""
    return 100_000 * seed + epoch


def _summary(row, epochs):
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.3f}", f"train {row['train_accuracy']:.1%}"]
    if "val_accuracy" in row:
        parts.append(f"val {row['val_accuracy']:.1%}")
    return ", ".join(parts)
