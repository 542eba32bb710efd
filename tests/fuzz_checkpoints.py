"""Kill short runs at random moments, damage checkpoints at random places, and see whether anything is lost.

    python tests/fuzz_checkpoints.py --kills 200 --damages 200 --seed 0 --out results/fuzz-checkpoints.json

Kills: a process trains, says after each epoch that it is complete, and gets SIGKILL at a random moment; then the next
one goes on. After every kill a checkpoint must load, at most one epoch may be lost of those said to be complete, and
a run that came to its end must be, to the last bit, the run that nobody killed.
Damages: the newest of two checkpoints is cut off or some of its bits are flipped; that must be noticed, and the one
before must load. POSIX only: os.fork makes 200 processes without importing torch 200 times.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from stn_cifar import study
from stn_cifar.checkpoints import HEADER, CheckpointError, newest_checkpoint, read_checkpoint
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.glyphs import CLASSES, make_glyphs
from stn_cifar.stn import build_model
from stn_cifar.training import fit

# momentum, so that the optimizer has a state; precision fixed, as a measurement might choose another in another process
CONFIG = Config.preset("tutorial", dataset="glyphs", device="cpu", precision="fp32", batch_size=32, epochs=12,
                       momentum=0.9)


class Failed(Exception):
    """Something was lost, or damage was not noticed."""


def tiny_data():
    """Glyphs enough for three steps an epoch; the last batch is ragged."""
    return Data(Split(*make_glyphs(80, seed=0)), None, Split(*make_glyphs(20, seed=1)), CLASSES, "glyphs")


def train(folder, data, epochs=CONFIG.epochs, report=lambda epoch: None):
    """Train, or go on, with checkpoints in `folder`; report(epoch) is called when an epoch is complete and kept."""
    config = CONFIG.replace(epochs=epochs)
    return fit(build_model(config), data, config, folder, on_epoch_end=lambda _, history: report(len(history)))


def differences(a, b, where="", skip=("seconds",)):
    """Where two nested values of dicts, lists, tensors and plain values differ at all, as a list of names."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [name for key in sorted(a.keys() | b.keys(), key=str) if key not in skip
                for name in (differences(a[key], b[key], f"{where}/{key}", skip) if key in a and key in b
                             else [f"{where}/{key}"])]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [name for i, (x, y) in enumerate(zip(a, b, strict=True))
                for name in differences(x, y, f"{where}/{i}", skip)]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [where]


# ---- kills ------------------------------------------------------------------------------------------------------


def start(folder, data):
    """A process that trains into `folder`: its id, and a pipe out of which come the complete epochs, a byte each."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads: idle ones of NumPy's, at most
        pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the process ends by os._exit
        train(folder, data, report=lambda epoch: os.write(writing, bytes([epoch])))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(pid, pipe):
    """(epochs said to be complete, ended by a kill?) once the process is over; Failed if it failed."""
    _, status = os.waitpid(pid, 0)
    with open(pipe, "rb") as file:
        epochs = max(file.read(), default=0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise Failed("a training process failed; its traceback is above")
    return epochs, os.WIFSIGNALED(status)


def kill_often(kills, rng, scratch, data):
    """Counts, after `kills` processes were killed."""
    started = time.perf_counter()
    wait_for(*start(scratch / "reference", data))
    duration = time.perf_counter() - started
    reference = newest_checkpoint(scratch / "reference")
    counts = dict(kills=0, processes_that_reached_the_end=0, kills_before_the_first_checkpoint=0,
                  kills_while_writing_one=0, most_epochs_lost=0, runs_finished_and_equal_to_the_last_bit=0)
    run, complete, temporaries = scratch / "run-0", 0, 0
    while counts["kills"] < kills:
        process = start(run, data)
        time.sleep(rng.uniform(0, 0.7 * duration))  # a run takes several processes, and most of these are killed
        os.kill(process[0], signal.SIGKILL)
        epochs, killed = wait_for(*process)
        complete = max(complete, epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it would tell of a damaged file, and a kill may leave none
            state = newest_checkpoint(run)
        kept = len(state["history"]) if state else 0
        counts["most_epochs_lost"] = max(counts["most_epochs_lost"], complete - kept)
        if complete - kept > 1:
            raise Failed(f"{complete} epochs were complete, and {kept} are kept")
        counts["kills" if killed else "processes_that_reached_the_end"] += 1
        counts["kills_before_the_first_checkpoint"] += killed and state is None
        left = len(list(run.glob(".*.tmp")))
        counts["kills_while_writing_one"] += left > temporaries
        temporaries = left
        if kept == CONFIG.epochs:
            if differ := differences(reference, state):
                raise Failed(f"a run of several processes differs from the run of one in {', '.join(differ)}")
            counts["runs_finished_and_equal_to_the_last_bit"] += 1
            shutil.rmtree(run)
            run, complete, temporaries = scratch / f"run-{counts['kills']}", 0, 0
    return counts


# ---- damages ----------------------------------------------------------------------------------------------------


def damaged(content, rng):
    """(kind, place of the first damage, damaged content); one in five somewhere in the short header."""
    reach = HEADER if rng.random() < 0.2 else len(content)
    if rng.random() < 0.5:
        length = rng.randrange(reach)
        return "truncations", length, content[:length]
    spoilt, bits = bytearray(content), rng.sample(range(8 * reach), rng.choice((1, 1, 2, 8)))
    for bit in bits:
        spoilt[bit // 8] ^= 1 << bit % 8
    return "bit_flips", min(bits) // 8, bytes(spoilt)


def damage_often(damages, rng, scratch, data):
    """Counts, after the newest of two checkpoints was damaged `damages` times."""
    folder = scratch / "damages"
    wait_for(*start(folder, data))
    before, newest = sorted(folder.glob("epoch-*.pt"))
    content, expected = newest.read_bytes(), read_checkpoint(before)
    counts = dict(damages=0, truncations=0, bit_flips=0, of_these_in_the_header=0, noticed=0, the_one_before_loaded=0)
    for _ in range(damages):
        kind, place, spoilt = damaged(content, rng)
        newest.write_bytes(spoilt)
        counts["damages"] += 1
        counts[kind] += 1
        counts["of_these_in_the_header"] += place < HEADER
        try:
            read_checkpoint(newest)
        except CheckpointError:
            counts["noticed"] += 1
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            state = newest_checkpoint(folder)
        counts["the_one_before_loaded"] += (not differences(expected, state, skip=())
                                            and [newest.name in str(w.message) for w in told] == [True])
        if not counts["damages"] == counts["noticed"] == counts["the_one_before_loaded"]:
            raise Failed(f"{kind} at byte {place} of {len(content)} went unnoticed: {counts}")
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the places")
    parser.add_argument("--out", type=Path, help="write counts and outcome to this JSON file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # before the forks: threads do not survive them
    rng, data, started = random.Random(args.seed), tiny_data(), time.perf_counter()
    result = dict(what="tests/fuzz_checkpoints.py: short runs killed with SIGKILL at random moments, and checkpoints "
                       "damaged at random places", outcome="passed", seed=args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            result["kills"] = kill_often(args.kills, rng, Path(scratch), data)
            result["damages"] = damage_often(args.damages, rng, Path(scratch), data)
        except (Failed, CheckpointError, UserWarning) as error:
            result["outcome"] = f"FAILED: {error}"
    result |= dict(seconds=round(time.perf_counter() - started, 1), config=CONFIG.to_dict(),
                   machine=study.machine(CONFIG),
                   versions=dict(python=platform.python_version(), torch=torch.__version__))
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return 0 if result["outcome"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
