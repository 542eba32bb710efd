"""Each transformer family's warp, parameters -> grid -> sample: forward, and with backward."""

import time

import torch

from stn_cifar import Config, transforms
from stn_cifar.sampler import sample

from .arms import synchronize


def run(settings):
    """All raw values: "batch x size" -> family -> "forward" and "both" -> seconds, one a round."""
    device = Config.preset("tutorial", **settings.fields).torch_device()
    raw = {}
    for batch in settings.family_batches:
        for size in settings.family_sizes:
            raw[f"{batch} x {size}"] = seconds(batch, size, device, settings)
            settings.say(f"families: batch {batch}, {size} pixels")
    return dict(raw=raw)


def seconds(batch, size, device, settings):
    """Family -> "forward": seconds of a warp, one a round; "both": with the gradient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator).to(
        device, memory_format=torch.channels_last)
    params = {}
    for name, family in transforms.FAMILIES.items():
        noise = torch.randn(batch, family.num_params, generator=generator)
        params[name] = (family.identity() + 0.05 * noise).to(device).requires_grad_()
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
