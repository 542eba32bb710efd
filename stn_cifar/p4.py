"""Group convolutions over quarter turns (Cohen & Welling 2016, arXiv 1602.07576: the group p4).

Maps have four sets of channels, one for each quarter turn: (B, 4 c, H, W), the turn first. Turn the
picture by 90 degrees, and the maps turn along, each set giving way to the next. So what a network
learns of a thing that stands upright it knows of the same thing on its side: it need not learn all
of it four times.
"""

import torch
import torch.nn.functional as F
from torch import nn


class P4Conv2d(nn.Conv2d):
    """A convolution with `inputs` and `outputs` channels for each quarter turn.

    first: it reads a picture, (B, inputs, H, W); otherwise maps, (B, 4 inputs, H, W).
    Gives (B, 4 outputs, H', W'). There is no bias: normalization follows.
    """

    def __init__(self, inputs, outputs, kernel_size, first=False, stride=1, padding=0):
        super().__init__(inputs if first else 4 * inputs, outputs, kernel_size, stride, padding,
                         bias=False)
        read, put = _permutations(1 if first else 4, kernel_size)
        self.register_buffer("read", read, persistent=False)
        self.register_buffer("put", put, persistent=False)

    def forward(self, x):
        """Set r of the outputs is that of the weights turned counter-clockwise by r quarters."""
        weight = _AllTurns.apply(self.weight, self.read, self.put)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


def _permutations(sets, side):
    """Which place of a filter, (y, x, set) counted through, each turned one reads: (4, places).

    And the way back: for each place, where in all four it was put, these counted through: as many.
    """
    places = torch.arange(side * side * sets).view(side, side, sets)
    # a turned filter reads the sets by the turn relative to its own
    read = torch.stack([torch.rot90(places, r).roll(r if sets > 1 else 0, 2).flatten()
                        for r in range(4)])
    put = read.argsort(1) + len(read[0]) * torch.arange(4)[:, None]
    return read, put.flip(0)  # the last turn first: summed in the order that autograd has


class _AllTurns(torch.autograd.Function):
    """Filters (o, sets i, k, k) as (4 o, sets i, k, k): turned by 0 to 3 quarters.

    Each way is one gathering. By rot90 and roll, and autograd's way back through them, it is some
    forty small operations a layer, half of all that a GPU does for such a network.
    """

    @staticmethod
    def forward(ctx, weight, read, put):
        ctx.save_for_backward(put)
        turned = _by_place(weight, read.shape[1])[:, read].transpose(0, 1)  # (4, o, places, i)
        return _as_filters(turned.flatten(0, 1), weight)

    @staticmethod
    def backward(ctx, grad):
        put, = ctx.saved_tensors
        by_turn = _by_place(grad, put.shape[1]).unflatten(0, (4, -1))  # (4, o, places, i)
        found = by_turn.transpose(0, 1).flatten(1, 2)[:, put]
        return _as_filters(found.sum(1), grad), None, None


def _by_place(filters, places):
    """(o, sets i, k, k) as (o, places, i); channels last, as they are kept here, it is a view."""
    return filters.permute(0, 2, 3, 1).reshape(len(filters), places, -1)


def _as_filters(by_place, like):
    """(o, places, i) as filters (o, *, k, k), channels last, of the size of those of `like`."""
    return by_place.reshape(len(by_place), *like.shape[2:], -1).permute(0, 3, 1, 2)


class P4BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of maps (B, 4 c, H, W), its statistics shared by the four sets."""

    def forward(self, x):
        b, _, height, width = x.shape
        # of channels-last maps all of these are views: the four sets side by side, as a picture
        # four times as wide
        x = x.permute(0, 2, 3, 1).reshape(b, height, 4 * width, -1).permute(0, 3, 1, 2)
        x = super().forward(x)
        return x.permute(0, 2, 3, 1).reshape(b, height, width, -1).permute(0, 3, 1, 2)


def split_turns(pooled):
    """(B, 4 c) as (B, 4, c): one row for each quarter turn."""
    return pooled.unflatten(1, (4, -1))


def turned_copies(pooled):
    """Pooled maps (B, 4 c) as they were of the picture turned by 0 to 3 quarters: (B, 4, 4 c)."""
    sets = split_turns(pooled)
    return torch.stack([sets.roll(r, 1).flatten(1) for r in range(4)], dim=1)
