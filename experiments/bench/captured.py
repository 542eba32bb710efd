"""The training step on a GPU: kernel by kernel, and captured as a CUDA graph."""

import time

import torch

from stn_cifar import Config, Split, build_model
from stn_cifar.training.captured import CapturedStep
from stn_cifar.training.loop import step_options
from stn_cifar.training.optim import make_optimizer
from stn_cifar.training.precision import resolve
from stn_cifar.training.step import Step

from .arms import synchronize

CASES = {  # name -> (preset, fields)
    "tutorial": ("tutorial", {}),
    "compact": ("compact", {}),
    "strong": ("strong", {}),
    "taught": ("taught", {}),
    "taught, p4 CNN": ("taught", dict(stn=False, model="p4", width=2.2)),
    "taught, STN modulo 90° before a p4 CNN": ("taught", dict(
        model="p4", width=2.0, localization="p4_mod90", localization_width=0.9, pose_bins=12)),
}
KINDS = dict(eager=Step, captured=CapturedStep)
IMAGES = 4000  # of noise: what they show does not matter here


def run(settings):
    """All raw values: case -> kind -> milliseconds a step, one a round; nothing without CUDA."""
    device = Config.preset("tutorial", **settings.fields).torch_device()
    if device.type != "cuda":
        settings.say("captured: needs CUDA, left out")
        return dict(raw={})
    raw = {}
    for name, (preset, fields) in CASES.items():
        config = Config.preset(preset, dataset="cifar10", device=str(device), **fields)
        steps = {kind: started(config, of, device) for kind, of in KINDS.items()}
        raw[name] = {kind: [] for kind in KINDS}
        for _ in range(settings.rounds):
            for kind, step in steps.items():
                raw[name][kind].append(milliseconds(step, config, settings.steps // 8))
        settings.say(f"captured: {name}")
    return dict(raw=raw, peak_mb=torch.cuda.max_memory_allocated(device) / 2**20,
                precision=resolve("auto", device))


def started(config, kind, device):
    """A step of `config`, warm."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    train = Split(images, torch.arange(IMAGES) % 10).to(device)
    model = build_model(config).train()
    optimizer = make_optimizer(model, 0.001, fused=True)
    step = kind(model, train, optimizer, resolve(config.precision, device), **step_options(config))
    step.sample_epoch(1, 0, generator)
    milliseconds(step, config, 6)
    return step


def milliseconds(step, config, count):
    """Of one step, the mean of `count`."""
    index = torch.arange(config.batch_size, device=step.device)
    synchronize(step.device)
    before = time.perf_counter()
    for _ in range(count):
        step(index, config.teacher_forcing / 2)
    synchronize(step.device)
    return 1000 * (time.perf_counter() - before) / count
