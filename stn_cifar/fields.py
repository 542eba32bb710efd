"""A field of Config: its default, help text and legal values, and the check of a value.

An error names the field, the value, and what would be right.
"""

import difflib
import math
import numbers
import os
import re
import types
import typing
from dataclasses import field

import torch


def group(name):
    """A maker of the fields of one group: default, help text and legal values, for --help."""
    def make(default, help, *, low=None, high=None, above=None, choices=None):
        limits = dict(low=low, high=high, above=above, choices=choices)
        return field(default=default, metadata=dict(group=name, help=help, limits=limits))
    return make


def did_you_mean(name, known):
    """The end of an error message: the nearest of the `known` names, and all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(sorted(known))}"


def check_device(device):
    """ValueError unless `device` is "auto", or names one that torch has here."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device: {device!r} is unknown; must be 'auto', 'cpu', 'cuda', 'cuda:1' "
                         "and so on, or 'mps'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ((device.startswith("cuda") and int(device[5:] or 0) >= count)
            or (device == "mps" and not torch.backends.mps.is_available())):
        raise ValueError(f"device: {device!r} asked for, but torch sees {count} CUDA devices and "
                         "no such other; use 'cpu' or 'auto'")


def checked(name, value, hint, *, low=None, high=None, above=None, choices=None):
    """`value` as the plain type that `hint` says; ValueError, with the remedy, if it is no such."""
    optional = isinstance(hint, types.UnionType)  # of one type and None
    kind = typing.get_args(hint)[0] if optional else hint
    if value is None and optional:
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    # a number of NumPy's will do, and an int for a float; True is a number to Python but never to
    # a person
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)
    is_bool = type(value).__name__ in ("bool", "bool_")  # Python's and NumPy's
    if not (isinstance(value, number) and not is_bool if number
            else isinstance(value, kind) or (kind is bool and is_bool)):
        none = " or None" if optional else ""
        raise ValueError(f"{name}: {value!r} is a {type(value).__name__}; must be "
                         f"{kind.__name__}{none}")
    try:
        value = kind(value)
    except OverflowError:  # an integer beyond all floats
        value = math.inf
    if choices and value not in choices:
        raise ValueError(f"{name}: {value!r} is unknown{did_you_mean(value, choices)}")
    if kind in (int, float):
        limits = [f">= {low}" if low is not None else "", f"> {above}" if above is not None else "",
                  f"<= {high}" if high is not None else ""]
        good = (-math.inf < value < math.inf and (low is None or value >= low)
                and (above is None or value > above) and (high is None or value <= high))
        if not good:
            must = " and ".join(filter(None, limits)) or "finite"
            raise ValueError(f"{name}: {value!r} is out of range; must be {must}")
    return value
