"""Runs the asked benchmarks one after another and keeps each one's result as soon as it is there."""

import datetime
import json
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision

from stn_cifar import Config, report, study

from . import antialias, arms, families, growth, loops, measures

BENCHMARKS = dict(loops=loops.run, measures=measures.run, growth=growth.run, families=families.run,
                  antialias=antialias.run)


@dataclass(frozen=True)
class Settings:
    """How much is measured; the defaults take about ten minutes on two cores."""

    fields: dict  # of Config, the same for all: where the data is
    results: Path
    images: Path
    machine: str
    data_name: str
    started: float
    rounds: int = 5
    batch_size: int = 64
    steps: int = 200  # of each loop in a round
    measure_steps: int = 60
    count: int = 50_000  # glyphs, where there is no CIFAR-10
    ceiling_size: int = 2048
    batch_sizes: tuple = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    image_sizes: tuple = (64, 96)
    growth_images: int = 4096  # a round, fewer of larger ones
    family_batches: tuple = (64, 256)
    family_sizes: tuple = (32, 64)
    warp_rounds: int = 15
    warp_pixels: int = 2**20  # a round
    scales: tuple = (1.25, 1.5, 2.0, 2.5, 3.0)
    antialias_images: int = 512

    def say(self, text):
        """Progress, with the time since the start."""
        print(f"[{time.perf_counter() - self.started:5.0f} s] {text}", flush=True)


QUICK = dict(rounds=2, batch_size=16, steps=2, measure_steps=2, count=64, ceiling_size=64, batch_sizes=(8, 16),
             image_sizes=(48,), growth_images=48, family_batches=(4,), family_sizes=(16,), warp_rounds=2, warp_pixels=1,
             scales=(1.5, 3.0), antialias_images=16)


def run(names, results, images, quick=False, device="auto"):
    """Run the benchmarks `names`; returns the record's path. quick: tiny, on few glyphs; its numbers mean nothing."""
    fields = dict(dataset="glyphs", batch_size=QUICK["batch_size"]) if quick else arms.find_data()
    fields["device"] = device
    machine = study.machine(Config(device=device))
    data_name = "CIFAR-10" if fields["dataset"] == "cifar10" else "glyphs"
    settings = Settings(fields, Path(results), Path(images), machine, data_name, time.perf_counter())
    settings = replace(settings, **QUICK) if quick else settings
    if data_name == "glyphs":
        print("NOTE: measured on the built-in glyphs" + ("" if quick else
              ", as no cifar-10-batches-py/ was found in $STN_CIFAR_DATA and ./data"), flush=True)
    path = settings.results / f"bench-{slug(machine)}.json"
    for name in names:
        result = BENCHMARKS[name](settings)
        result |= dict(
            dataset=data_name, quick=quick, threads=torch.get_num_threads(),
            versions=dict(python=platform.python_version(), torch=torch.__version__,
                          torchvision=torchvision.__version__),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
        keep(path, machine, name, result)
        for table in result["tables"]:
            print("\n" + report.bench_table(table) + "\n", flush=True)
    settings.say(f"done: {path}")
    return path


def keep(path, machine, name, result):
    """Put one benchmark's result into the record, beside those of the others."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(machine=machine, benchmarks={})
    done = record["benchmarks"] | {name: result}
    record["benchmarks"] = {key: done[key] for key in BENCHMARKS if key in done}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def slug(machine):
    """A machine in words as a short part of a file name: "2-core-xeon", "nvidia-h200"."""
    cores, _, processor = machine.rpartition(" CPU cores, ")
    if not cores:
        return re.sub("[^a-z0-9]+", "-", machine.lower()).strip("-")
    known = re.search("xeon|epyc|ryzen|threadripper|apple m[0-9]+|core|neoverse|arm", processor.lower())
    kind = known[0] if known else (re.findall("[a-z0-9]+", processor.lower()) or ["cpu"])[0]
    return f"{cores}-core-{kind.replace(' ', '-')}"
