"""Random numbers that depend on a seed alone."""

import contextlib
import threading

import torch

# torch's layers sample from its one global generator: two threads that seed it would mix
_GLOBAL_GENERATOR = threading.RLock()


@contextlib.contextmanager
def seeded(seed, device):
    """Within it, torch's global random state starts from `seed`; outside it is as it was.

    One thread at a time; `device`: a torch.device whose generator is meant too.
    """
    devices = [device] if device.type == "cuda" else []
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def epoch_seed(seed, epoch):
    """One number for (seed, epoch), different for all epochs below 100,000 of all seeds."""
    return 100_000 * seed + epoch
