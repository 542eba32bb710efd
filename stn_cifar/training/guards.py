"""What surrounds a training, and is restored after it."""

import contextlib
import signal
import threading
import traceback

import torch


@contextlib.contextmanager
def plain_torch(device):
    """Within it, torch trains as it does by default, whatever stands around `fit`."""
    with (torch.inference_mode(False), torch.enable_grad(), _default_dtype(torch.float32),
          torch.autocast(device.type, enabled=False), _denormals_flushed()):
        yield


@contextlib.contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _denormals_flushed():
    """Vanishing activations would make CPUs 5 to 50 times slower (pytorch#23862)."""
    were_kept = (torch.full((1,), 1e-38) * 0.01).item() != 0  # there is no getter
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not were_kept)


@contextlib.contextmanager
def sigterm_as_interrupt():
    """Within it, SIGTERM is what Ctrl-C is; in the main thread only (Python's rule)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # not by raising SIGINT, which the shell has ignored in programs started with nohup or &
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:  # None: not set by Python
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def out_of_memory_explained(batch_size, device):
    """Within it, running out of memory is a MemoryError that says what to set."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        # a notebook keeps the last traceback, whose frames would hold what the next try needs
        traceback.clear_frames(error.__traceback__)
        raise MemoryError(f"batch_size: {batch_size} does not fit into the memory of {device}; "
                          f"set a smaller one, such as {max(1, batch_size // 2)}") from error
