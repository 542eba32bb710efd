"""A study on a Ray cluster: each run is a task, and where a node dies, another goes on with it.

The clone, `results` and `checkpoint_dir` lie on storage that all machines share under the same
path, as on most clusters; so does CIFAR-10, in $STN_CIFAR_DATA or ./data.
"""

import logging
import os
import secrets
import time
from pathlib import Path

from stn_cifar.console import say

from . import records, studies
from .run import BUSY, DONE, run_one

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = Path("checkpoints")
LOCAL = "local"  # the address that starts a cluster of this machine alone
RETRIES = 20  # of one run, after deaths of nodes
WAIT = 10  # seconds until a run that is another's is asked for again: NFS frees a dead node's lock
PASSED_ON = ("STN_CIFAR_DATA", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # environment, to every run


class Unfinished(RuntimeError):
    """A run whose node is being shut down, or which another process is at: to be tried again."""


def run_study(name: str, address: str = LOCAL, results: Path = records.RESULTS, shard: str = "1/1",
              checkpoint_dir: Path = CHECKPOINTS, epochs: int | None = None, cpus: int = 1,
              gpus: float = 0, **overrides) -> bool:
    """Run what is missing of the study `name` on the cluster at `address`; False if a run failed.

    Each run has `cpus` cores, as many threads, and `gpus` GPUs (a part: several runs share one). A
    run whose node dies goes on elsewhere from its last epoch in `checkpoint_dir`. One line a run is
    printed as it ends; one that fails leaves the others alone. KeyboardInterrupt ends those that
    run; records that are there stay. The rest as in run.run_study.

    ValueError where Ray is not installed, or no machine has so many cores or GPUs;
    ConnectionError where no cluster is at `address`.
    """
    this = studies.by_name(name)
    runs = this.runs(shard, epochs)
    for run in runs:  # checks the fields here and now; the device is another machine's
        this.config(*run, **overrides | dict(device="auto"))
    overrides.setdefault("device", "cuda" if gpus else "cpu")  # nothing else for want of it
    if cpus < 1 or gpus < 0:
        raise ValueError(f"cpus: {cpus}, gpus: {gpus}; must be at least 1 and 0")
    ray = _connected(address, cpus)
    mark = Path(results).resolve() / f".study-{secrets.token_hex(8)}"
    pending, failed = {}, 0
    try:
        _check_resources(ray, dict(CPU=cpus, GPU=gpus))
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES,
                          retry_exceptions=[Unfinished])(_task)
        given = dict(results=Path(results).resolve(), checkpoint_dir=Path(checkpoint_dir).resolve())
        for run in runs:
            pending[task.remote(Path.cwd(), mark, this, name, run, **given, **overrides)] = run
        while pending:
            (ref,), _ = ray.wait(list(pending))
            try:
                text = ray.get(ref)
            except ray.exceptions.RayError as error:
                failed += 1
                text = f"FAILED: {getattr(error, 'cause', None) or error}"
            arm, budget, seed = pending.pop(ref)
            say(f"{len(runs) - len(pending)} of {len(runs)} {name}: {arm}, {budget} epochs, "
                f"seed {seed}: {text}")
    finally:
        for ref in pending:
            ray.cancel(ref, force=True)
        ray.shutdown()
        mark.unlink(missing_ok=True)
    return not failed


def _connected(address: str, cpus: int):
    """The module ray, connected to the cluster at `address`."""
    try:
        import ray
    except ImportError as error:
        raise ValueError('--ray: Ray is not installed; pip install -e ".[cluster]"') from error
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    env |= dict(OMP_NUM_THREADS=str(cpus), PYTHONPATH=path)  # read before torch is imported
    here = {}
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        here = dict(num_cpus=cores, include_dashboard=False)
    try:
        ray.init(address, runtime_env=dict(env_vars=env), log_to_driver=False,
                 logging_level=logging.ERROR, **here)
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: other versions there
        raise ConnectionError(f"--ray: {address}: {error}") from error
    return ray


def _check_resources(ray, needed: dict) -> None:
    """ValueError where no machine of the cluster has what a run needs: it would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(key, 0) >= n for key, n in needed.items()) for machine in machines):
        there = "; ".join(", ".join(f"{machine.get(key, 0):g} {key}s" for key in needed)
                          for machine in machines)
        raise ValueError(f"--cpus {needed['CPU']} --gpus {needed['GPU']:g}: no machine of the "
                         f"cluster has as many; they have {there}")


def _task(folder: Path, mark: Path, *run, **given) -> str:
    """One run, in `folder` as a plain one, on whatever node; what to say of it."""
    os.chdir(folder)  # ./data, and paths in the environment
    if not mark.exists():
        raise FileNotFoundError(f"{mark.parent}: not the same folder as where the study was "
                                "started; must be on storage that all machines share")
    outcome, text = run_one(*run, **given)
    if outcome == BUSY:
        time.sleep(WAIT)
    if outcome != DONE:
        raise Unfinished(text)
    return text
