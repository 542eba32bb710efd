"""A spatial transformer network on CIFAR-10, with its training and its pictures."""

from . import diagnostics, distortions, plots, transforms
from .checkpoints import load_model
from .config import Config
from .data import load_data
from .stn import build_model
from .training import evaluate, fit

__all__ = ["Config", "build_model", "diagnostics", "distortions", "evaluate", "fit", "load_data", "load_model", "plots",
           "transforms"]
