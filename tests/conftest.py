"""What several test files share: small data sets, and how hypothesis searches."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each of pytest-xdist's workers

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings

from stn_cifar.data import Data, Split
from stn_cifar.data.glyphs import CLASSES, make_glyphs

# a busy machine is no fault of the code, and a failing example must come again
settings.register_profile("stn_cifar", deadline=None, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stn_cifar")


@pytest.fixture(scope="session")
def glyph_data():
    """Few glyphs: with batches of 64, the last of the 203 training images are a batch of 11."""
    train, val, test = (Split(*make_glyphs(count, seed))
                        for seed, count in enumerate((203, 57, 130)))
    return Data(train, val, test, CLASSES, "glyphs")


@pytest.fixture
def photos():
    """Six uint8 images (6, 3, 32, 32), smooth, so that turning them moves things and no more."""
    noise = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(noise, size=(32, 32), mode="bicubic").clamp(0, 1)
    return (images * 255).to(torch.uint8)


def pytest_make_parametrize_id(config, val, argname):
    """The same names in every worker: the repr of a function, say, holds its address."""
    return getattr(val, "__name__", argname) if " at 0x" in repr(val) else None
