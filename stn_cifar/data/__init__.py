"""The data: `Data` and `Split` hold it, `load_data` finds CIFAR-10 or makes glyphs."""

from .cifar10 import DataError, NoDataError
from .dataset import Data, Split, distorted, load_data

__all__ = ["Data", "DataError", "NoDataError", "Split", "distorted", "load_data"]
