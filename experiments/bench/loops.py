"""The tutorial's loop, the same tuned by a knowing user, and ours: same network, batches, steps."""

import time

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from stn_cifar import Config, build_model

from . import arms
from .children import started, take_turns

TUNED = dict(arm="plain", channels_last=True, item=False)
LOOPS = {
    "tutorial's loop, no workers": dict(arm="plain"),
    "tutorial's loop, 2 workers": dict(arm="plain", workers=2),
    "tuned by hand, no workers": TUNED,
    "tuned by hand, 2 workers kept": dict(TUNED, workers=2, persistent=True),
    "ours": dict(arm="ours"),
}
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


def run(settings):
    """All raw values: rounds of each loop, and what the machine can reach at most."""
    same = dict(settings.fields, steps=settings.steps, count=settings.count)
    with started({name: options | same for name, options in LOOPS.items()}) as children:
        settings.say("loops: warm")
        results = take_turns(children, settings.rounds, settings.say)
    precisions = {rounds[0]["precision"] for rounds in results.values()}
    return dict(steps=settings.steps, batch_size=settings.batch_size, raw=results,
                flops_per_image=flops_per_image(settings.fields),
                ceilings={precision: ceiling(settings, precision) for precision in precisions})


def flops_per_image(fields, batch_size=64):
    """Floating-point operations of one training step, per image, as torch counts them."""
    config = Config.preset("tutorial", **fields)
    model, device = build_model(config), config.torch_device()
    images = torch.zeros(batch_size, 3, 32, 32, dtype=torch.uint8, device=device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() / batch_size


@torch.no_grad()
def ceiling(settings, precision):
    """Most FLOP/s that matrix product and convolution reach here: name -> one value a round."""
    device = Config.preset("tutorial", **settings.fields).torch_device()
    size, dtype = settings.ceiling_size, DTYPES[precision]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    images, weight = (torch.randn(64, 64, side, side, device=device).to(
        dtype, memory_format=torch.channels_last) for side in (32, 3))
    work = {"matrix product": (lambda: a @ b, 2 * size**3),
            "convolution": (lambda: F.conv2d(images, weight, padding=1), 2 * 64**3 * 9 * 32 * 32)}
    found = {name: [] for name in work}
    for number in range(settings.rounds + 1):
        for name, (call, flops) in work.items():
            started_at = time.perf_counter()
            for _ in range(5):
                call()
            arms.synchronize(device)
            if number:  # the first is the warm-up
                found[name].append(5 * flops / (time.perf_counter() - started_at))
    return found
