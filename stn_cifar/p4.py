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

    first: it reads a picture, (B, inputs, H, W); otherwise maps, (B, 4 inputs, H, W). depthwise:
    maps, each channel of each set by itself, and the same number comes out. Gives
    (B, 4 outputs, H', W'). There is no bias: normalization follows.
    """

    def __init__(self, inputs, outputs, kernel_size, first=False, stride=1, padding=0,
                 depthwise=False):
        if depthwise and (first or inputs != outputs):
            raise ValueError(f"depthwise: with first={first}, {inputs} channels in and {outputs} "
                             "out; must read maps, and give as many")
        sets = 1 if first or depthwise else 4  # that a filter reads
        super().__init__(sets * inputs, outputs, kernel_size, stride, padding,
                         groups=inputs if depthwise else 1, bias=False)
        self.depthwise = depthwise
        places = torch.arange(kernel_size**2 * sets).view(kernel_size, kernel_size, sets)
        # which place of a filter, (y, x, set) counted through, each turned one reads: (4, places);
        # it reads the sets by the turn relative to its own
        read = torch.stack([torch.rot90(places, r).roll(r if sets > 1 else 0, 2).flatten()
                            for r in range(4)])
        self.register_buffer("read", read, persistent=False)

    def forward(self, x):
        """Set r of the outputs is that of the weights turned counter-clockwise by r quarters."""
        # (o, sets i, k, k) as (o, places, i): channels last, as weights are kept here, it is a view
        places = self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), self.read.shape[1], -1)
        # four gatherings, in each of which no two places share a gradient: no sum hangs on an order
        turned = torch.cat([places.index_select(1, read) for read in self.read])
        weight = turned.reshape(len(turned), *self.kernel_size, -1).permute(0, 3, 1, 2)
        groups = x.shape[1] if self.depthwise else 1
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=groups)


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
