"""Processes that are measured: started, asked for one round at a time, and ended."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Failed(RuntimeError):
    """A process ended, or did not answer in time."""


def environment(**changes):
    """The environment for a process of ours: it finds package and benchmarks from any working folder."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths))) | changes


class Child:
    """A process with one or several arms. It starts at once and warms up by itself; its first answer says so."""

    def __init__(self, arms, env=None):
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads could fill up
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.arms", json.dumps(arms)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints,
                                        env=environment(**(env or {})))

    def answer(self, timeout=600):
        """The result of the round that is under way (of the warm-up: the last arm's)."""
        deadline, line = time.monotonic() + timeout, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not part:
                raise Failed(f"no answer within {timeout} s" if not ready else self._last_words())
            line += part
        return json.loads(line)

    def round(self, name):
        """The result of one more round of the arm `name`."""
        self.process.stdin.write(f"{name}\n".encode())
        self.process.stdin.flush()
        return self.answer()

    def _last_words(self):
        self.complaints.seek(0)
        lines = self.complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "ended without a word"

    def end(self):
        """End it, whatever it is doing."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.complaints.close()


@contextlib.contextmanager
def started(arms):
    """name -> Child for `arms`, name -> options, each in a process of its own and warm; ended at the end."""
    children = {}
    try:
        for name, options in arms.items():
            children[name] = Child({name: options})
            children[name].answer()  # one at a time: ours measures, as it warms up, which precision is faster
        yield children
    finally:
        for child in children.values():
            child.end()


def take_turns(children, rounds, say=lambda text: None):
    """name -> the results of `rounds` rounds; one round of each, then the next, never two at a time."""
    results = {name: [] for name in children}
    for number in range(rounds):
        for name, child in children.items():
            results[name].append(child.round(name))
        say(f"round {number + 1} of {rounds}")
    return results
