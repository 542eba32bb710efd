"""A spatial transformer network on CIFAR-10, with its training and its pictures."""

import os
import sys

__version__ = "0.2.0"

if not ("torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ) and sys.platform == "linux":
    # GNU OpenMP's threads spin at every barrier, by default nearly for ever: beside another busy
    # process a training step then takes several times as long (results/speed.md). Read when torch
    # is loaded; what the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from . import diagnostics, distortions, plots, transforms
from .config import Config
from .data import Data, Split, load_data
from .spatial_transformer import SpatialTransformer
from .stn import STNClassifier, build_model
from .training.checkpoints import load_model
from .training.evaluation import evaluate
from .training.loop import fit

__all__ = ["Config", "Data", "STNClassifier", "SpatialTransformer", "Split", "__version__",
           "build_model", "diagnostics", "distortions", "evaluate", "fit", "load_data",
           "load_model", "plots", "transforms"]
