"""The tutorial's loop, the same tuned by a knowing user, and ours: the same network, batches and number of steps."""

import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from stn_cifar import Config, build_model
from stn_cifar.checkpoints import save_checkpoint
from stn_cifar.steps import make_optimizer

from . import arms
from .children import environment, started, take_turns

TUNED = dict(arm="plain", channels_last=True, item=False)
LOOPS = {
    "tutorial's loop, no workers": dict(arm="plain"),
    "tutorial's loop, 2 workers": dict(arm="plain", workers=2),
    "tuned by hand, no workers": TUNED,
    "tuned by hand, 2 workers kept": dict(TUNED, workers=2, persistent=True),
    "ours": dict(arm="ours"),
}
TUTORIAL_LOOPS = tuple(LOOPS)[:2]


def run(settings):
    """One table of loops, one of starting up and of what is not training; and all raw values."""
    same = dict(settings.fields, steps=settings.steps, count=settings.count)
    flops, ceilings = flops_per_image(settings.fields), {}
    with started({name: options | same for name, options in LOOPS.items()}) as children:
        settings.say("loops: warm")
        results = take_turns(children, settings.rounds, settings.say)
    narrow = results["ours"][0]["precision"] if results["ours"][0]["precision"] != "fp32" else "bf16"
    for precision in ("fp32", narrow):
        ceilings[precision] = ceiling(settings, precision)
    settings.say("loops: ceilings measured")
    starts = start_ups(settings)
    seconds_an_epoch = 50_000 / statistics.median(rates(results["ours"]))
    checkpoints = checkpoint_seconds(settings)
    return dict(
        rounds=settings.rounds, steps=settings.steps, raw=results, flops_per_image=flops, ceilings=ceilings,
        start_up=starts, checkpoint_seconds=checkpoints, seconds_an_epoch=seconds_an_epoch,
        images_per_second={name: statistics.median(rates(rounds)) for name, rounds in results.items()},
        tables=[table(results, flops, ceilings, settings), start_table(starts, checkpoints, seconds_an_epoch)])


def rates(rounds):
    """Images per second of each round."""
    return [r["images"] / r["seconds"] for r in rounds]


def spread(values, digits=0):
    """Median, least and most, for people."""
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(results, flops, ceilings, settings):
    """Images per second, beside the better of the tutorial's two loops."""
    best = max(statistics.median(rates(results[name])) for name in TUTORIAL_LOOPS)
    rows = []
    for name, rounds in results.items():
        rate, precision = statistics.median(rates(rounds)), rounds[0]["precision"]
        most = max(statistics.median(values) for values in ceilings[precision].values())
        rows.append([name, precision, spread(rates(rounds)), f"{rate / best:.2f}",
                     f"{statistics.median(r['data_seconds'] / r['seconds'] for r in rounds):.1%}",
                     f"{max(r['peak_mb'] for r in rounds):,.0f}", f"{rate * flops / most:.1%}"])
    measured = "; ".join(
        f"{precision}: " + ", ".join(f"{name} {statistics.median(values) / 1e9:,.0f}" for name, values in kinds.items())
        for precision, kinds in ceilings.items())
    return dict(
        title=f"Training loops: preset `tutorial`, {settings.data_name}, batches of {settings.batch_size}, "
              f"medians of {settings.rounds} rounds of {settings.steps} steps (least to most)",
        columns=["loop", "arithmetic", "images/s", "times the tutorial's better", "waiting for data",
                 "peak memory, MB", "share of the machine's ceiling"], rows=rows,
        note=f"A step needs {flops / 1e6:.1f} MFLOP an image. The ceilings, GFLOP/s, were measured in the same run: "
             f"{measured}. Starting an epoch's workers is not counted. Peak memory counts what workers do not share.")


def flops_per_image(fields, batch_size=64):
    """Floating-point operations of one training step, per image, as torch counts them."""
    config = Config.preset("tutorial", **fields)
    model, device = build_model(config), config.torch_device()
    images = torch.zeros(batch_size, 3, 32, 32, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        logits = model.classifier(model.align(model.normalize(images)).warped)
        F.cross_entropy(logits, torch.zeros(batch_size, dtype=torch.int64, device=device)).backward()
    return counter.get_total_flops() / batch_size


@torch.no_grad()
def ceiling(settings, precision):
    """Most FLOP/s that matrix product and convolution reach here: name -> one value a round."""
    device = Config.preset("tutorial", **settings.fields).torch_device()
    size = settings.ceiling_size
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    images = torch.randn(64, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    dtype = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)[precision]
    a, b, images, weight = (t.to(dtype) for t in (a, b, images, weight))
    work = {"matrix product": (lambda: a @ b, 2 * size**3),
            "convolution": (lambda: F.conv2d(images, weight, padding=1), 2 * 64 * 64 * 64 * 9 * 32 * 32)}
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


def start_ups(settings):
    """Name -> one dict a launch: seconds until the first step was done, and what they were spent on."""
    found = {"tutorial": [], "ours": []}
    for _ in range(settings.rounds):
        for name, launches in found.items():
            started_at = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "benchmarks.startup", name, json.dumps(settings.fields)],
                                  env=environment(), check=True, capture_output=True)
            marks = json.loads(done.stdout)
            # taking the interpreter up and down belongs to what a person waits for
            launches.append(dict(total=time.perf_counter() - started_at, **marks))
    settings.say("loops: start-up measured")
    return found


def checkpoint_seconds(settings):
    """Seconds of save_checkpoint, once a round, in the state in which a run of 50 epochs ends."""
    config = Config.preset("tutorial", **settings.fields)
    model = build_model(config)
    history = [dict(epoch=epoch, train_loss=1.0, train_accuracy=0.5, learning_rate=0.01, seconds=10.0)
               for epoch in range(1, 51)]
    found = []
    settings.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.results) as folder:  # the disk that people would write to
        for _ in range(4 * settings.rounds):
            started_at = time.perf_counter()
            save_checkpoint(folder, model, make_optimizer(model, config), history, config)
            found.append(time.perf_counter() - started_at)
    return found


def start_table(starts, checkpoints, seconds_an_epoch):
    """What a person waits for besides training."""
    rows = []
    for name, what in (("tutorial", "start-up, the tutorial's loop"), ("ours", "start-up, ours")):
        parts = [key for key in starts[name][0] if key != "total"]
        split = ", ".join(f"{part} {statistics.median(s[part] for s in starts[name]):.1f}" for part in parts)
        rows.append([what, spread([s["total"] for s in starts[name]], 1), split])
    share = statistics.median(checkpoints) / seconds_an_epoch
    rows.append(["writing a checkpoint", spread(checkpoints, 3),
                 f"{share:.2%} of an epoch, which takes {seconds_an_epoch:.1f}"])
    return dict(title="Besides training: from a cold process to the first step done, and checkpoints",
                columns=["what", "seconds (least to most)", "of which"], rows=rows,
                note="Starting up includes bringing the interpreter up and down; the files are in the system's cache.")
