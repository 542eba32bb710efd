"""Kill short runs, damage and forge their checkpoints: is anything lost, or wrongly believed?

    python tests/fuzz_checkpoints.py

Kills: a process trains, says after each epoch that it is complete, and gets SIGKILL at a random
moment; then the next one goes on. After every kill a checkpoint must load, no complete epoch may be
lost, and a run that came to its end must be, to the last bit, the run that nobody killed.
Damages: the newest of two checkpoints is cut off, or bits, blocks or the whole of it are altered;
that must be noticed and the one before must load, or not one number of what is read has changed.
Forgeries: a sound file holds a tensor of another shape, type or memory; it must be refused, naming
the tensor, and model and optimizer must be as they were.
Rivals: two processes start in one folder; exactly one may train there.
Permissions: a folder that cannot be listed, entered or written to must be an error, and unchanged.
POSIX only: os.fork makes hundreds of processes without importing torch hundreds of times.
"""

import argparse
import copy
import importlib
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

from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.data.glyphs import CLASSES, make_glyphs
from stn_cifar.stn import build_model
from stn_cifar.training.checkpoints import (
    CheckpointError,
    claim,
    load_model,
    newest_checkpoint,
    read_checkpoint,
    resume,
)
from stn_cifar.training.loop import fit
from stn_cifar.training.optim import make_optimizer

# momentum, so that the optimizer has a state; fp32, so that it is the same on every machine
CONFIG = Config.preset("tutorial", dataset="glyphs", device="cpu", precision="fp32", batch_size=32,
                       epochs=12, momentum=0.9)
REFUSED = 3  # exit status of a process that another one kept out
NOBODY = 65534


class Failed(Exception):
    """Something was lost, or something wrong was not noticed."""


def tiny_data():
    """Glyphs enough for three steps an epoch; the last batch is ragged."""
    train, test = make_glyphs(80, seed=0), make_glyphs(20, seed=1)
    return Data(Split(*train), None, Split(*test), CLASSES, "glyphs")


def train(folder, data, epochs=CONFIG.epochs, report=lambda epoch: None):
    """Train, or go on, in `folder`; report(epoch) is called when an epoch is complete and kept."""
    config = CONFIG.replace(epochs=epochs)
    return fit(build_model(config, data), data, config, folder,
               on_epoch_end=lambda _, history: report(len(history)))


def differences(a, b, where="", skip=("seconds", "path")):
    """Where two nested values of dicts, lists, tensors and plain values differ: a list of names."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [name for key in sorted(a.keys() | b.keys(), key=str) if key not in skip
                for name in (differences(a[key], b[key], f"{where}/{key}", skip)
                             if key in a and key in b else [f"{where}/{key}"])]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [name for i, (x, y) in enumerate(zip(a, b, strict=True))
                for name in differences(x, y, f"{where}/{i}", skip)]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [where]


def forge(path, content):
    """A checkpoint with any `content`, as whoever knows the format can make one."""
    torch.save({key: value for key, value in content.items() if key != "path"}, path)
    return path


# ---- processes ----------------------------------------------------------------------------------


def start(job):
    """A process that does job(report): its id, and a pipe out of which come the epochs reported."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # of forks with threads: idle ones of NumPy's, at most
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the process ends by os._exit
        job(lambda epoch: os.write(writing, bytes([epoch])))
        status = 0
    except CheckpointError as error:
        status = REFUSED if "is in use by another run" in str(error) else 1
        if status != REFUSED:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start_training(folder, data):
    return start(lambda report: train(folder, data, report=report))


def wait_for(pid, pipe):
    """(epochs reported, ended by a kill?, kept out?) once the process is over."""
    _, status = os.waitpid(pid, 0)
    with open(pipe, "rb") as file:
        epochs = max(file.read(), default=0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, REFUSED):
        raise Failed("a process failed; its traceback is above")
    return epochs, os.WIFSIGNALED(status), os.WIFEXITED(status) and bool(os.WEXITSTATUS(status))


# ---- kills --------------------------------------------------------------------------------------


def kill_often(kills, rng, scratch, data):
    """Counts, after `kills` processes were killed."""
    started = time.perf_counter()
    wait_for(*start_training(scratch / "reference", data))
    duration = time.perf_counter() - started
    reference = newest_checkpoint(scratch / "reference")
    counts = dict(kills=0, processes_that_reached_the_end=0, kills_before_the_first_checkpoint=0,
                  kills_while_writing_one=0, runs_equal_to_the_last_bit=0)
    run, complete = scratch / "run-0", 0
    while counts["kills"] < kills:
        process = start_training(run, data)
        # a run takes several processes, and most of these are killed
        time.sleep(rng.uniform(0, 0.7 * duration))
        os.kill(process[0], signal.SIGKILL)
        epochs, killed, kept_out = wait_for(*process)
        if kept_out:
            raise Failed("a killed process kept the next one out of its folder")
        complete = max(complete, epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a damaged file, and a kill may leave none
            state = newest_checkpoint(run)
        kept = len(state["history"]) if state else 0
        if kept < complete:
            raise Failed(f"{complete} epochs were complete, and {kept} are kept")
        counts["kills" if killed else "processes_that_reached_the_end"] += 1
        counts["kills_before_the_first_checkpoint"] += killed and state is None
        # each process clears away what the one before it left
        counts["kills_while_writing_one"] += bool(list(run.glob(".*.tmp")))
        if kept == CONFIG.epochs:
            if differ := differences(reference, state):
                raise Failed(f"a run of several processes differs in {', '.join(differ)}")
            counts["runs_equal_to_the_last_bit"] += 1
            shutil.rmtree(run)
            run, complete = scratch / f"run-{counts['kills']}", 0
    if kills >= 20 and counts["kills_before_the_first_checkpoint"] > kills / 2:
        raise Failed(f"most kills came before there was anything to lose: {counts}")
    return counts


# ---- rivals -------------------------------------------------------------------------------------


def rival_often(pairs, scratch, data):
    """Counts, after `pairs` of processes started in one folder each, both at once."""
    expected = newest_checkpoint(scratch / "reference")
    counts = dict(pairs=0, kept_out=0, runs_equal_to_the_last_bit=0)
    while counts["pairs"] < pairs:
        folder = scratch / f"rivals-{counts['pairs']}"
        rivals = [start_training(folder, data) for _ in range(2)]
        ended = [wait_for(*rival) for rival in rivals]
        # one trains; the other is kept out, or came so late that it is given the finished run
        if sorted(epochs for epochs, *_ in ended) != [0, CONFIG.epochs]:
            raise Failed(f"two runs trained in one folder: {ended}")
        if differences(expected, newest_checkpoint(folder)):
            raise Failed("a run with a rival differs from the run alone")
        counts["pairs"] += 1
        counts["kept_out"] += sum(kept_out for *_, kept_out in ended)
        counts["runs_equal_to_the_last_bit"] += 1
    return counts


# ---- damages ------------------------------------------------------------------------------------


def blocks(content, rng, count):
    """`count` places of one random block length."""
    length = rng.choice((2, 16, 512, 4096))
    return length, [rng.randrange(max(1, len(content) - length)) for _ in range(count)]


def cut_off(content, rng):
    return content[:rng.randrange(len(content))]


def flip_bits(content, rng):
    reach = rng.choice((len(content), 2000))  # the archive's directory stands at its end
    spoilt = bytearray(content)
    for bit in rng.sample(range(8 * reach), rng.choice((1, 1, 2, 8))):
        spoilt[-1 - bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


def zero_block(content, rng):
    length, (place,) = blocks(content, rng, 1)
    return content[:place] + bytes(length) + content[place + length:]


def swap_blocks(content, rng):
    length, (a, b) = blocks(content, rng, 2)
    spoilt = bytearray(content)
    spoilt[a:a + length], spoilt[b:b + length] = content[b:b + length], content[a:a + length]
    return bytes(spoilt)


def insert_or_append(content, rng):
    place = rng.choice((0, rng.randrange(len(content)), len(content)))
    return content[:place] + rng.randbytes(rng.choice((1, 22, 5000))) + content[place:]


def garbage(content, rng):
    # with or without its marks: the archive's start, its end
    start, end = rng.choice(((0, 0), (4, 0), (30, 0), (0, 22), (4, 22)))
    return (content[:start] + rng.randbytes(len(content) - start - end)
            + content[len(content) - end:])


DAMAGES = (cut_off, flip_bits, zero_block, swap_blocks, insert_or_append, garbage)


def damage(content, rng):
    """(name of the kind, altered content)."""
    while True:  # zeros where there were zeros are no damage
        kind = rng.choice(DAMAGES)
        if (spoilt := kind(content, rng)) != content:
            return kind.__name__, spoilt


def damage_often(damages, rng, scratch):
    """Counts, after the newest of two checkpoints was damaged `damages` times."""
    folder = shutil.copytree(scratch / "reference", scratch / "damages")
    before, newest = sorted(folder.glob("epoch-*.pt"))
    content, expected = newest.read_bytes(), read_checkpoint(before)
    intact = read_checkpoint(newest)
    counts = dict(damages=0, noticed=0, without_effect=0) | {
        kind.__name__: 0 for kind in DAMAGES}
    for _ in range(damages):
        kind, spoilt = damage(content, rng)
        newest.write_bytes(spoilt)
        counts["damages"] += 1
        counts[kind] += 1
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            state = newest_checkpoint(folder)
        noticed = [newest.name in str(w.message) for w in told] == [True]
        counts["noticed" if noticed else "without_effect"] += 1  # as in the archive's padding
        if differences(expected if noticed else intact, state, skip=("path",)):
            (Path(tempfile.gettempdir()) / "unnoticed.pt").write_bytes(spoilt)
            raise Failed(f"{kind} went unnoticed; the file is kept as unnoticed.pt")
    return counts


# ---- forgeries ----------------------------------------------------------------------------------


def not_finite(tensor):
    """One of its numbers is NaN; whole numbers become fractions."""
    spoilt = tensor * 1.0
    spoilt[(-1,) * tensor.ndim] = float("nan")
    return spoilt


FORGERIES = dict(
    fewer=lambda tensor: torch.zeros(3), flat=lambda tensor: torch.zeros(tensor.numel() + 1),
    more_dimensions=lambda tensor: tensor[None], double=lambda tensor: tensor.double(),
    half=lambda tensor: tensor.half(),
    whole_numbers=lambda tensor: tensor.long() if tensor.is_floating_point() else tensor.bool(),
    one_number_posing_as_many=lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(
        *tensor.shape[:-1], tensor.shape[-1] + (tensor.numel() == 1)),
    not_finite=not_finite,
    huge=lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(2**40),
    number=lambda tensor: 0.5, text=lambda tensor: "weights", nothing=lambda tensor: {})


def forge_often(forgeries, rng, scratch, data):
    """Counts, after a tensor of model or optimizer was replaced `forgeries` times."""
    source, folder = max((scratch / "reference").glob("epoch-*.pt")), scratch / "forgeries"
    folder.mkdir()
    model = build_model(CONFIG, data)
    optimizer = make_optimizer(model, CONFIG.learning_rate, momentum=CONFIG.momentum, fused=True)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    counts = dict(forgeries=0, of_the_model=0, of_the_optimizer=0, refused=0)
    while counts["forgeries"] < forgeries:
        content = read_checkpoint(source)
        part, kind = rng.choice(("model", "optimizer")), rng.choice(list(FORGERIES))
        holder = content["model"] if part == "model" else content["optimizer"]["state"]
        name = rng.choice(list(holder))
        if part == "model":
            holder[name] = FORGERIES[kind](holder[name])
        else:
            holder[name] = {key: FORGERIES[kind](tensor) for key, tensor in holder[name].items()}
        forge(folder / source.name, content)
        try:
            resume(folder, model, optimizer, CONFIG)
        except CheckpointError as error:
            counts["refused"] += f"/{name} " in str(error)
        counts["forgeries"] += 1
        counts[f"of_the_{part}"] += 1
        if (counts["refused"] < counts["forgeries"]
                or differences(before, (model.state_dict(), optimizer.state_dict()))):
            raise Failed(f"{part}/{name}: {kind} was believed, or model or optimizer was touched")
    return counts


# ---- permissions --------------------------------------------------------------------------------


def forbidden_folders(scratch, data):
    """Counts, after every use of a folder without some permission was refused."""
    counts = dict(modes=0, refused=0)
    os.chmod(scratch, 0o755)  # the process that tries may be another user, as root may do anything
    read = newest_checkpoint, load_model
    uses = (*read, lambda folder: claim(folder).__enter__(), lambda folder: train(folder, data))
    # nothing allowed; no listing; no entering; no writing
    for mode, allowed in ((0o000, ()), (0o300, ()), (0o600, ()), (0o500, read)):
        folder = shutil.copytree(scratch / "reference", scratch / f"mode-{mode:o}")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        if os.getuid() == 0:
            for path in (folder, *folder.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        folder.chmod(mode)

        def attempt(report, folder=folder, allowed=allowed):
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            for use in uses:
                try:
                    use(folder)
                except CheckpointError:
                    if use in allowed:
                        raise
                else:
                    if use not in allowed:
                        raise Failed(f"a folder of mode {folder.name} was used")
        wait_for(*start(attempt))
        folder.chmod(0o700)
        if {path.name: path.read_bytes() for path in folder.iterdir()} != before:
            raise Failed(f"mode {mode:o}: the folder changed")
        counts["modes"] += 1
        counts["refused"] += len(uses) - len(allowed)
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--forgeries", type=int, default=200)
    parser.add_argument("--rivals", type=int, default=20, help="pairs of processes in one folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the places")
    parser.add_argument("--out", type=Path, help="JSON file of the counts and the outcome",
                        default=Path(__file__).parents[1] / "results" / "fuzz.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # before the forks: threads do not survive them
    # torch's optimizers load this at their first use, which takes seconds: in each child again, and
    # every kill would come before the first checkpoint
    importlib.import_module("torch._dynamo")
    rng, data, started = random.Random(args.seed), tiny_data(), time.perf_counter()
    result = dict(what=__doc__.splitlines()[0], outcome="passed", seed=args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        try:
            result["kills"] = kill_often(args.kills, rng, scratch, data)
            result["rivals"] = rival_often(args.rivals, scratch, data)
            result["damages"] = damage_often(args.damages, rng, scratch)
            result["forgeries"] = forge_often(args.forgeries, rng, scratch, data)
            result["permissions"] = forbidden_folders(scratch, data)
        except (Failed, CheckpointError, UserWarning) as error:
            result["outcome"] = f"FAILED: {error}"
    result |= dict(seconds=round(time.perf_counter() - started, 1), config=CONFIG.to_dict(),
                   machine=platform.platform(), cores=os.cpu_count(),
                   versions=dict(python=platform.python_version(), torch=torch.__version__))
    text = json.dumps(result, indent=1)
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result["outcome"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
