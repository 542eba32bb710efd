"""What surrounds a training, and is restored after it."""

import contextlib

import torch


@contextlib.contextmanager
def plain_torch(device):
    """Within it, torch trains as it does by default, whatever stands around `fit`."""
    with (torch.inference_mode(False), torch.enable_grad(),
          torch.autocast(device.type, enabled=False), _denormals_flushed()):
        yield


@contextlib.contextmanager
def _denormals_flushed():
    """Vanishing activations would make CPUs 5 to 50 times slower (pytorch#23862)."""
    were_kept = (torch.full((1,), 1e-38) * 0.01).item() != 0  # there is no getter
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not were_kept)
