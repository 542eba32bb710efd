"""The spatial transformer (Jaderberg et al. 2015, arXiv 1506.02025): a module for any network.

It knows no data set, no classifier and no Config: with transforms.py, matrices.py, sampler.py
and pose_bins.py it needs nothing but torch.
"""

from collections.abc import Sequence
from numbers import Integral
from operator import index
from typing import NamedTuple

import torch
from torch import nn

from . import matrices, transforms
from .pose_bins import PoseBins
from .sampler import INTERPOLATIONS, PADDING_MODES, sample


class Alignment(NamedTuple):
    """What a transformer made of a batch."""

    warped: torch.Tensor  # (B, C, H', W'), the images' dtype
    theta: torch.Tensor  # (B, 2, 3), projective (B, 3, 3), tps (B, control points, 2)
    grid: torch.Tensor  # (B, k H', k W', 2), k = supersample
    pose_logits: torch.Tensor | None = None  # (B, num_logits), where it predicts pose bins


class SpatialTransformer(nn.Module):
    """Localization network + grid generator + sampler, in front of any network.

    localization: any module (B, C, H, W) -> (B, num_params of the family), or -> (B,
        pose_bins.num_logits). The constructor zeroes its last registered layer with weights, and
        sets that layer's bias to the identity's parameters: a fresh transformer returns its input
        exactly (but for supersample > 1, which blurs, and layers without weights behind it, such as
        a tanh). A network may do so itself, by a method `initialize_output(values)`.
        initialize=False leaves it as it is (for a trained one).
    transform: a name in transforms.FAMILIES. output_size: an int or (H, W), None: the input's.
    padding_mode, interpolation, supersample: as `sampler.sample` has them.
    iterations: alignment steps. Each predicts from the image warped so far, and every one samples
        the ORIGINAL image through the composed map (Lin & Lucey 2017, arXiv 1612.03897), so borders
        and blur do not pile up. Matrix families only.
    pose_bins: a PoseBins, for a localization network that predicts a distribution over poses. It
        is decoded without gradients, so a class loss teaches it nothing: add
        `pose_bins.loss(alignment.pose_logits, true_params)` of known poses.

    Images may have any size, number of channels and floating point type; coordinates are float32
    at least, and span every picture from -1 to 1: so on one that is not square a turned square is
    none. Unknown names, and arguments that do not go together, are a ValueError.
    """

    def __init__(self, localization: nn.Module, transform: str = "affine",
                 output_size: int | Sequence[int] | None = None, padding_mode: str = "zeros",
                 interpolation: str = "bilinear", supersample: int = 1, iterations: int = 1,
                 pose_bins: PoseBins | None = None, initialize: bool = True):
        super().__init__()
        if not isinstance(localization, nn.Module):
            raise ValueError(f"localization: a {type(localization).__name__}; must be an nn.Module")
        for name, value, choices in (("transform", transform, transforms.FAMILIES),
                                     ("padding_mode", padding_mode, PADDING_MODES),
                                     ("interpolation", interpolation, INTERPOLATIONS)):
            if value not in choices:
                raise ValueError(f"{name}: {value!r} is unknown; must be one of "
                                 f"{', '.join(map(repr, choices))}")
        check_iterations(iterations, transform, pose_bins)
        if not isinstance(supersample, Integral) or supersample < 1:
            raise ValueError(f"supersample: {supersample}; must be an int, 1 or more")
        if not isinstance(pose_bins, PoseBins | None):
            raise ValueError(f"pose_bins: {pose_bins!r}; must be a PoseBins, such as "
                             "PoseBins('rotation', 36)")
        if pose_bins and pose_bins.transform != transform:
            raise ValueError(f"pose_bins: made for transform={pose_bins.transform!r}, but this is "
                             f"transform={transform!r}")
        self.localization, self.iterations, self.pose_bins = localization, iterations, pose_bins
        self.family = transforms.FAMILIES[transform]
        self.output_size = None if output_size is None else _height_width(output_size)
        self.padding_mode, self.interpolation = padding_mode, interpolation
        self.supersample = int(supersample)
        if initialize:
            initialize_output(localization, pose_bins.initial_logits() if pose_bins
                              else self.family.identity())

    def forward(self, images: torch.Tensor, true_params: torch.Tensor | None = None,
                teacher_forcing: float | None = None) -> Alignment:
        """Alignment of `images` (B, C, H, W), floating point.

        true_params: (B, num_params) of a known pose, used in the prediction's place.
        teacher_forcing: the probability, for each image, that they are; None: always, and nothing
        is predicted.
        """
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            kind = f"dtype {images.dtype}" if hasattr(images, "dtype") else type(images).__name__
            raise ValueError(f"images: {kind}; must be a floating point Tensor, such as "
                             "images / 255")
        if true_params is not None and len(true_params) != len(images):
            raise ValueError(f"true_params: {len(true_params)} for {len(images)} images; must be "
                             "one row for each")
        if true_params is not None and teacher_forcing is None:
            theta, pose_logits = self._theta(true_params), None
        else:
            theta, pose_logits = self._predict(images)
        if true_params is not None and teacher_forcing is not None:
            forced = torch.rand(theta.shape[0], device=theta.device) < teacher_forcing
            theta = torch.where(forced[:, None, None], self._theta(true_params), theta)
        warped, grid = self.warp(images, theta)
        return Alignment(warped, theta, grid, pose_logits)

    def warp(self, images, theta, size=None):
        """(warped, grid) of `images` (B, C, H, W) under `theta`; size: another output size."""
        height, width = _height_width(size, self.output_size, images.shape[-2:])
        grid = self.family.grid_of(theta, (self.supersample * height, self.supersample * width))
        warped = sample(images, grid, self.padding_mode, self.interpolation, self.supersample)
        if (height, width) == tuple(images.shape[-2:]) and self.supersample == 1:
            warped = self._exact_identity(images, warped, theta)
        return warped, grid

    def unwarp(self, maps, theta, size=None):
        """`maps` (B, K, H', W') on the warped images, such as heat maps, back on the originals.

        size: of the originals, an int or (H, W), None: the maps'. Zero where the transformer did
        not look.
        ValueError for thin plate splines, and for a theta that cannot be inverted.
        """
        if not self.family.is_matrix:
            raise ValueError(f"transform: {self.family.name!r} has no inverse in closed form; "
                             "unwarp needs a matrix family, such as 'affine'")
        try:
            inverse = matrices.inverse(theta)
        except torch.linalg.LinAlgError as error:
            raise ValueError("theta: it maps the picture to a line or a point, which cannot be "
                             "undone") from error
        grid = self.family.grid_of(inverse, _height_width(size, maps.shape[-2:]))
        return sample(maps, grid, "zeros", self.interpolation)

    def _predict(self, images):
        """(theta, pose logits or None) of `images`, over all iterations."""
        theta = pose_logits = None
        for _ in range(self.iterations):
            view = images if theta is None else self.warp(images, theta, images.shape[-2:])[0]
            params = self.localization(view)
            if not isinstance(params, torch.Tensor):
                raise ValueError(f"localization: it gives a {type(params).__name__}; must be a "
                                 "Tensor (B, number of parameters)")
            if self.pose_bins:
                params, pose_logits = self.pose_bins.decode(params).params, params
            step = self._theta(params)
            with torch.autocast(images.device.type, enabled=False):  # in the maps' own precision
                theta = step if theta is None else matrices.compose(theta, step)
        return theta, pose_logits

    def _theta(self, params):
        """theta of `params` (B, num_params), float32 at least, even under autocast."""
        with torch.autocast(params.device.type, enabled=False):
            return self.family.theta(params.to(torch.promote_types(params.dtype, torch.float32)))

    def _exact_identity(self, images, warped, theta):
        """`warped`, but where theta is the identity the very images; gradients as they were.

        At sizes that are no power of two coordinates are rounded, and warped is off by some 1e-5.
        """
        if all(size & (size - 1) == 0 for size in images.shape[-2:]):
            return warped
        identity = self.family.theta(self.family.identity()[None].to(theta))
        is_identity = (theta == identity).flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(is_identity, images.detach() + (warped - warped.detach()), warped)

    def description(self):
        """All that makes its output, but for the localization network, in words."""
        return f"{self.extra_repr()}, iterations={self.iterations}, pose_bins={self.pose_bins}"

    def extra_repr(self):
        return (f"{self.family.name!r}, output_size={self.output_size}, "
                f"padding_mode={self.padding_mode!r}, interpolation={self.interpolation!r}, "
                f"supersample={self.supersample}")


class IdentityTransformer(SpatialTransformer):
    """The control: predicts the identity for every image, and has no parameters.

    Images are resampled only where `output_size` is not theirs, or `true_params` are given.
    """

    def __init__(self, transform="affine", output_size=None, padding_mode="zeros", supersample=1):
        super().__init__(nn.Identity(), transform, output_size, padding_mode,
                         supersample=supersample, initialize=False)
        self.register_buffer("identity", self.family.identity(), persistent=False)

    def forward(self, images, true_params=None, teacher_forcing=None):
        """Alignment of `images` under the identity; true_params: as in SpatialTransformer."""
        size = tuple(images.shape[-2:])
        if true_params is None and self.output_size in (None, size):
            theta, _ = self._predict(images)
            return Alignment(images, theta, self.family.grid_of(theta, size))
        return super().forward(images, true_params, teacher_forcing)

    def _predict(self, images):
        return self._theta(self.identity.expand(images.shape[0], -1)), None


def check_iterations(iterations, transform, pose_bins=None):
    """ValueError unless so many alignment steps go with the family `transform` and `pose_bins`."""
    if not isinstance(iterations, Integral) or iterations < 1:
        raise ValueError(f"iterations: {iterations}; must be an int, 1 or more")
    if iterations > 1 and (pose_bins or not transforms.FAMILIES[transform].is_matrix):
        raise ValueError(f"iterations: {iterations} with transform={transform!r} and pose_bins="
                         f"{pose_bins}; must be 1, or a matrix family, such as 'affine', without "
                         "pose_bins")


def _height_width(*sizes):
    """(height, width) that the first of `sizes` that is not None says, an int or (H, W)."""
    size = next(size for size in sizes if size is not None)
    try:
        height, width = map(index, size if isinstance(size, Sequence) else (size, size))
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"size: {size!r}; must be 1 or more pixels, an int or (height, width)")
    return height, width


def initialize_output(network, values):
    """Let `network` predict `values` (n,) for every input, whatever comes in.

    Its last layer with weights gets zero weights, and `values` as its bias; what stands behind that
    layer (a tanh, say) is not undone. A network with a method `initialize_output(values)` does it
    itself. ValueError where there is no such layer, or its size is another.
    """
    if network_start := getattr(network, "initialize_output", None):
        return network_start(values)
    layers = [layer for layer in network.modules()
              if isinstance(getattr(layer, "weight", None), torch.Tensor)]
    last = layers[-1] if layers else None
    bias = getattr(last, "bias", None)
    # a weight that is computed, as by weight normalization, cannot be set to zero
    if (bias is None or nn.parameter.is_lazy(bias) or len(bias) != len(values)
            or not isinstance(last.weight, nn.Parameter)):
        raise ValueError("localization: to start at the identity, the layer with weights that is "
                         f"registered last must have a bias of {len(values)} values; it is {last}. "
                         f"Let it be nn.Linear(..., {len(values)}) (run on a batch if lazy), or "
                         "say initialize=False for a trained network")
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        bias.copy_(values)
