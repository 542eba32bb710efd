"""The precision of the networks: fp32, bf16 or fp16. Coordinates are float32 always."""

import contextlib

import torch

CPU_HAS_BF16 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"  # torch.cpu's, from 2.6 on
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


def resolve(precision, device):
    """The precision that "auto" stands for on `device`; others are returned as they are.

    A rule by capability, so the same machine always takes the same one. CUDA: bf16 from compute
    capability 8.0 on, else fp16 (older cards emulate bf16 and claim to support it, pytorch#148322).
    CPU: bf16 where it has instructions for it, AMX (Intel) or AVX-512 BF16 (AMD from Zen 4 on: the
    presets' steps are 1.4 to 1.6 times as fast there); else fp32, as without them bf16 is slower,
    or no faster (pytorch#86550, #118499). Apple's GPU: fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    can = (getattr(torch.cpu, name, lambda: False) for name in CPU_HAS_BF16)
    return "bf16" if device.type == "cpu" and any(ask() for ask in can) else "fp32"


@contextlib.contextmanager
def autocast(device, precision):
    """The autocast context of `precision`, also within another one."""
    with torch.autocast(device.type, dtype=DTYPES[precision] if precision != "fp32" else None,
                        enabled=precision != "fp32"):
        yield
    # within another context torch would keep the casts of weights that are about to change
    torch.clear_autocast_cache()
