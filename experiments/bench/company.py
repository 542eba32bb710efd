"""A training step beside other programs: how OpenMP's threads wait decides how slow it becomes.

A thread that has done its part of a loop spins GOMP_SPINCOUNT times before it sleeps. Where another
program has the core that the last thread needs, the others spin for as long as that one waits.
"""

import contextlib
import subprocess
import sys

from .children import started

UNSET = "300000"  # GNU OpenMP's, where nothing is set
OURS = dict(arm="ours")
LOOPS = {  # name -> (options of the arm, GOMP_SPINCOUNT)
    "tutorial's loop, as torch comes": (dict(arm="plain"), UNSET),
    "ours, as torch comes": (OURS, UNSET),
    "ours, 10,000 spins (as the package sets it)": (OURS, "10000"),
    "ours, 1,000 spins": (OURS, "1000"),
    "ours, no spins": (OURS, "0"),
    "ours, one thread": (OURS | dict(threads=1), "10000"),
}
BUSY = "while True: pass"


def run(settings):
    """All raw values: company -> loop -> milliseconds a step, one a round."""
    raw = {name: {loop: [] for loop in LOOPS} for name in COMPANY}
    arms = {name: options | settings.fields | dict(steps=settings.company_steps,
                                                   count=settings.count)
            for name, (options, _) in LOOPS.items()}
    spins = {name: dict(GOMP_SPINCOUNT=spins) for name, (_, spins) in LOOPS.items()}
    twins = {f"{name}, its twin": options for name, options in arms.items()}
    spins |= {f"{name}, its twin": env for name, env in spins.items()}
    with started(arms | twins, spins) as children:
        settings.say("company: warm")
        for number in range(settings.rounds):
            for company, beside in COMPANY.items():
                for name in LOOPS:
                    with beside(children[f"{name}, its twin"]):
                        one = children[name].round()
                    raw[company][name].append(1000 * one["seconds"] / settings.company_steps)
            settings.say(f"company: round {number + 1} of {settings.rounds}")
    return dict(steps=settings.company_steps, raw=raw)


def busy(count):
    """Beside so many processes that do nothing else than being busy."""
    @contextlib.contextmanager
    def beside(twin):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            yield
        finally:
            for other in others:
                other.kill()
                other.wait()
    return beside


@contextlib.contextmanager
def twin_too(twin):
    """The same run once more at the same time: its round begins first, and is waited for."""
    twin.ask()
    try:
        yield
    finally:
        twin.answer()


COMPANY = {"quiet": busy(0), "beside one busy process": busy(1),
           "beside two busy processes": busy(2), "two runs at once": twin_too}
