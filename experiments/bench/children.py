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

ROOT = Path(__file__).resolve().parents[2]


class Failed(RuntimeError):
    """A process ended, or did not answer in time."""


class Child:
    """A process with one arm. It starts at once and warms up; its first answer says so."""

    def __init__(self, options, **env):
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        env = os.environ | dict(PYTHONPATH=os.pathsep.join(paths)) | env
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115  a pipe could fill up
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.arms", json.dumps(options)], env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints)

    def answer(self, timeout=600):
        """The result of the round that is under way."""
        deadline, line = time.monotonic() + timeout, b""
        while not line.endswith(b"\n"):
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            part = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not part:
                raise Failed(self._last_words() if ready else f"no answer within {timeout} s")
            line += part
        return json.loads(line)

    def ask(self):
        """Let one more round begin."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def round(self):
        """The result of one more round."""
        self.ask()
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
def started(arms, env=None):
    """name -> Child for `arms`, name -> options, each warm; ended at the end.

    env: name -> environment variables.
    """
    children = {}
    try:
        for name, options in arms.items():
            children[name] = Child(options, **(env or {}).get(name, {}))
            children[name].answer()  # they warm up one at a time
        yield children
    finally:
        for child in children.values():
            child.end()


def take_turns(children, rounds, say=lambda text: None):
    """name -> the results of `rounds` rounds; one of each, then the next, never two at a time."""
    results = {name: [] for name in children}
    for number in range(rounds):
        for name, child in children.items():
            results[name].append(child.round())
        say(f"round {number + 1} of {rounds}")
    return results
