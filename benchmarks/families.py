"""Each transformer family's warp, parameters -> grid -> sample, relative to affine: forward, and with backward."""

import statistics
import time

import torch

from stn_cifar import Config, transforms
from stn_cifar.sampler import sample

from .arms import synchronize


def run(settings):
    """The table, and all raw values."""
    device = Config.preset("tutorial", **settings.fields).torch_device()
    raw = {}
    for batch in settings.family_batches:
        for size in settings.family_sizes:
            raw[f"{batch} x {size}"] = seconds(batch, size, device, settings)
            settings.say(f"families: batch {batch}, {size} pixels")
    return dict(rounds=settings.warp_rounds, raw=raw, tables=[table(raw, settings)])


def seconds(batch, size, device, settings):
    """Family -> {"forward": seconds of a warp, one a round; "both": with the gradient of the parameters}."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
    params = {}
    for name, family in transforms.FAMILIES.items():
        shaken = family.identity() + 0.05 * torch.randn(batch, family.num_params, generator=generator)
        params[name] = shaken.to(device).requires_grad_()
    calls = max(1, settings.warp_pixels // (batch * size * size))
    found = {name: dict(forward=[], both=[]) for name in params}
    for number in range(settings.warp_rounds + 2):
        for name, family in transforms.FAMILIES.items():
            for kind, times in found[name].items():
                started = time.perf_counter()
                for _ in range(calls):
                    with torch.set_grad_enabled(kind == "both"):
                        warped = sample(images, family.grid(params[name], size))
                    if kind == "both":
                        params[name].grad = None
                        warped.backward(warped.detach())
                synchronize(device)
                if number > 1:  # the first two warm up
                    times.append((time.perf_counter() - started) / calls)
    return found


def table(raw, settings):
    """Milliseconds for affine, and what the others take relative to it: median of the rounds' ratios."""
    columns, rows = ["family"], [[name] for name in transforms.FAMILIES]
    for case, found in raw.items():
        columns += [f"{case}, forward", f"{case}, both"]
        for row, (name, times) in zip(rows, found.items(), strict=True):
            for kind, values in times.items():
                if name == "affine":
                    row.append(f"{1000 * statistics.median(values):.2f} ms")
                else:  # the ratio within a round: a slow moment hits both
                    ratios = [value / affine for value, affine in zip(values, found["affine"][kind], strict=True)]
                    row.append(f"{statistics.median(ratios):.2f}")
    return dict(title="Warps: time relative to affine (batch x image size; both: forward and backward), medians of "
                      f"{settings.warp_rounds} rounds", columns=columns, rows=rows, note="")
