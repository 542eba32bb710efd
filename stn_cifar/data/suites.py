"""Frozen suites: test images under a distortion, the same pixels on every machine."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import torch

from ..distortions import apply, sample_params

SEED = 1506_02025  # another seed, other suites
# images at a time, to bound memory; clutter is cut from within the chunk
CHUNK = 500


def suite(images, name):
    """The frozen suite of `images` (N, C, H, H): (uint8 pictures (N, C, H', H'), applied theta).

    The i-th picture has one pose for good, whatever device or seed. Computed in float64 on the CPU,
    so that machines, which round differently, have the same pixels (a test pins their digest).
    """
    generator = torch.Generator().manual_seed(SEED)
    params = sample_params(name, len(images), generator)
    fine = replace(params, theta=params.theta.double(), patches=params.patches.double())
    originals = images.cpu()
    chunks = [slice(i, i + CHUNK) for i in range(0, len(images), CHUNK)]
    pictures = [(apply(originals[chunk], fine[chunk]) * 255).round().to(torch.uint8)
                for chunk in chunks]
    return torch.cat(pictures).to(images.device), params.theta.to(images.device)


def suite_file(images, labels, name):
    """The frozen suite as the bytes of an .npz file (images, labels, theta), and its digest.

    The digest is the SHA-256 of the bytes of images, labels and (theta * 1e5).round(), one after
    the other: of what is in the file, not of how it is packed.
    """
    pictures, theta = suite(images, name)
    arrays = dict(images=pictures.cpu().numpy(), labels=labels.cpu().numpy(),
                  theta=theta.cpu().numpy())
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    digest = hashlib.sha256()
    for array in (arrays["images"], arrays["labels"], (arrays["theta"] * 1e5).round()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return packed.getvalue(), digest.hexdigest()
