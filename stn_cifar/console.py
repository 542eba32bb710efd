"""Printing that never ends or spoils a run, whatever standard output is."""

import contextlib
import sys

from tqdm import tqdm

# one line: what is left, how fast, and what the last complete epoch brought
PROGRESS = "{percentage:3.0f} % [{elapsed} < {remaining}, {rate_fmt}{postfix}]"


class _Output:
    """sys.stdout as it is at the moment; what it cannot write is left out."""

    encoding = "utf-8"  # tqdm asks

    def write(self, text):
        with contextlib.suppress(Exception):  # there is none, it is closed, its disk is full
            sys.stdout.write(text)

    def flush(self):
        with contextlib.suppress(Exception):
            sys.stdout.flush()


def say(text):
    """Print a line."""
    print(text, file=_Output(), flush=True)


def progress_bar(total, initial):
    """A tqdm bar of `total` training steps, `initial` of them done."""
    return tqdm(total=total, initial=initial, unit="step", file=_Output(), bar_format=PROGRESS,
                mininterval=1)
