"""Runs the asked benchmarks and keeps each one's result as soon as it is there."""

import contextlib
import datetime
import json
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stn_cifar import Config, experiment
from stn_cifar.files import write_whole

from ..records import RESULTS, RecordError
from . import arms, captured, company, families, loops, speed

BENCHMARKS = dict(loops=loops.run, company=company.run, captured=captured.run,
                  families=families.run)


@dataclass(frozen=True)
class Settings:
    """How much is measured; the defaults take about ten minutes on two cores."""

    fields: dict  # of Config, the same for all: where the data is
    started: float
    rounds: int = 5
    batch_size: int = 64
    steps: int = 200  # of each loop in a round
    count: int = 50_000  # glyphs, where there is no CIFAR-10
    ceiling_size: int = 2048
    company_steps: int = 40
    family_batches: tuple = (64, 256)
    family_sizes: tuple = (32, 64)
    warp_rounds: int = 15
    warp_pixels: int = 2**20  # a round

    def say(self, text):
        """Progress, with the time since the start."""
        print(f"[{time.perf_counter() - self.started:5.0f} s] {text}", flush=True)


QUICK = dict(rounds=2, batch_size=16, steps=2, count=64, ceiling_size=64, company_steps=2,
             family_batches=(4,), family_sizes=(16,), warp_rounds=2, warp_pixels=1)


def run(names=(), results: Path | None = None, quick: bool = False, device: str = "auto") -> Path:
    """Run the benchmarks `names`, or all; returns the record's path, results/speed/MACHINE.json.

    quick: tiny, on few glyphs; its numbers mean nothing, and its record goes to build/ unless
    `results` is given. ValueError for an unknown name.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ValueError(f"benchmark: {name!r}; must be one of {', '.join(BENCHMARKS)}")
    fields = dict(dataset="glyphs", batch_size=QUICK["batch_size"]) if quick else arms.find_data()
    settings = Settings(fields | dict(device=device), time.perf_counter())
    settings = replace(settings, **QUICK) if quick else settings
    if fields["dataset"] == "glyphs" and not quick:
        print("NOTE: measured on the built-in glyphs, as no CIFAR-10 was found unpacked in "
              "$STN_CIFAR_DATA or ./data", flush=True)
    machine = experiment.machine(Config(device=device).torch_device())
    results = Path(results or ("build" if quick else RESULTS))
    path = results / "speed" / f"{kind_of(machine)}.json"
    for name in BENCHMARKS:
        if names and name not in names:
            continue
        if not (measured := BENCHMARKS[name](settings))["raw"]:
            continue
        result = measured | dict(
            dataset=fields["dataset"], quick=quick, threads=torch.get_num_threads(),
            versions=dict(python=platform.python_version(), torch=torch.__version__),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
        keep(path, machine, name, result)
    print(speed.page(speed.load(path.parent)))
    return path


def keep(path, machine, name, result):
    """Put one benchmark's result into the record, beside those of the others."""
    record = dict(machine=machine, benchmarks={})
    with contextlib.suppress(FileNotFoundError, RecordError):  # a damaged one is made anew
        record = speed.read(path)
    record["benchmarks"][name] = result
    write_whole(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def kind_of(machine):
    """A machine in words as a short file name: "2-core-xeon", "nvidia-h200"."""
    cores = re.match(r"(\d+) cpu cores?, (.*)", machine.lower())
    if not cores:
        return re.sub("[^a-z0-9]+", "-", machine.lower()).strip("-")
    known = re.search("xeon|epyc|ryzen|threadripper|apple m[0-9]+|core|neoverse|arm", cores[2])
    kind = known[0] if known else (re.findall("[a-z0-9]+", cores[2]) or ["cpu"])[0]
    return f"{cores[1]}-core-{kind.replace(' ', '-')}"
