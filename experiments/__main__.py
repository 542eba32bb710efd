"""The commands of a clone of the repository: `python -m stn_cifar` hands them over."""

import argparse
import os
from pathlib import Path

import torch

from stn_cifar.console import say
from stn_cifar.files import check_writable, path_argument

from . import cluster
from .bench import run as benchmarks
from .records import RESULTS
from .report import IMAGES, NOTEBOOK, README, write_report
from .run import run_study

FAILED = 1  # exit status where some runs came to nothing
STOPPED = 130  # exit status, as of a program that Ctrl-C has ended


def main(argv: list[str]) -> int:
    """Run a command; its exit status. What goes wrong is raised, for whoever calls to tell."""
    args = vars(_parser().parse_args(argv))
    return args.pop("command")(**args) or 0


def study(name: str, shard: str, results: Path, checkpoint_dir: Path | None, ray: str | None,
          cpus: int, gpus: float, **overrides) -> int:
    """Run what is missing of a study: arms x budgets x seeds, one record each."""
    check_writable(results)
    given = {key: value for key, value in overrides.items() if value is not None}
    if ray:
        done = cluster.run_study(name, ray, results, shard, checkpoint_dir or cluster.CHECKPOINTS,
                                 cpus=cpus, gpus=gpus, **given)
        return 0 if done else FAILED
    if cpus < 1:
        raise ValueError(f"cpus: {cpus}; must be at least 1")
    torch.set_num_threads(cpus)
    done = run_study(name, results, shard, checkpoint_dir, **given)
    return 0 if done else STOPPED


def report(results: Path, readme: Path, notebook: Path, images: Path) -> None:
    """Bring results/README.md, the numbers in README and the studies' figures up to date."""
    for path in write_report(readme, results, notebook, images):
        say(f"up to date: {path}")


def bench(names: list[str], quick: bool, results: Path | None) -> None:
    """Measure speed, side by side with the tutorial's loop."""
    results = results or (Path("build") if quick else RESULTS)  # a quick run's are not to be kept
    check_writable(results)
    benchmarks.run(names, results, quick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stn_cifar", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(command, help):
        sub = commands.add_parser(command.__name__, help=help, description=command.__doc__)
        sub.set_defaults(command=command)
        return sub

    def place(sub, flag, help, default=None):
        sub.add_argument(flag, type=path_argument, help=help, default=default)

    sub = add(study, "run many experiments that answer one question")
    sub.add_argument("name", help="which; an unknown name lists them")
    sub.add_argument("--shard", default="1/1", help="k/n: every n-th run, from the k-th on")
    place(sub, "--results", "folder for the records (default: results)", RESULTS)
    place(sub, "--checkpoint-dir", "keep each run's epochs here, and go on from them")
    sub.add_argument("--epochs", type=int, help="other than the study's")
    sub.add_argument("--device", help="where (default: auto)")
    sub.add_argument("--ray", nargs="?", const=cluster.LOCAL, metavar="ADDRESS",
                     help="hand each run to a Ray cluster: HOST:6379, auto (one that runs on this "
                     "machine), or nothing (one is started here, for as long as the study takes)")
    # one, if nothing is said: threads that share cores with another run wait for one another
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1
    sub.add_argument("--cpus", type=int, default=threads, help="cores and threads of a run "
                     f"(default: OMP_NUM_THREADS, else 1; here {threads}): one shard a core")
    sub.add_argument("--gpus", type=float, default=0, help="with --ray: GPUs of a run, or a part")
    sub = add(report, "bring the tables of results up to date")
    place(sub, "--results", "folder of records (default: results)", RESULTS)
    place(sub, "--readme", "README to fill in", README)
    place(sub, "--notebook", "notebook to embed pictures in", NOTEBOOK)
    place(sub, "--images", "folder for the figures (default: images)", IMAGES)
    sub = add(bench, "measure speed")
    sub.add_argument("names", nargs="*", help="which (default: all; an unknown name lists them)")
    sub.add_argument("--quick", action="store_true", help="try all; the numbers mean nothing")
    place(sub, "--results", "folder for the record (default: results; quick: build)")
    return parser
