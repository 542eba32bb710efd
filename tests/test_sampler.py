"""The sampler against scipy, a cubic convolution in numpy, and kornia."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from stn_cifar.matrices import homogeneous
from stn_cifar.sampler import PADDING_MODES, sample
from stn_cifar.transforms import FAMILIES

# what scipy and numpy call them, for images that end half a pixel outside their outer pixels
SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest", "reflection": "reflect"}
NUMPY_MODE = {"zeros": "constant", "border": "edge", "reflection": "symmetric"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def rng(seed):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed, dtype=torch.float64):
    return torch.rand(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def identity_grid(size, batch=1, dtype=torch.float64):
    params = FAMILIES["affine"].identity().to(dtype)
    return FAMILIES["affine"].grid(params.repeat(batch, 1), size)


def pixel_positions(grid, height, width):
    """Rows and columns (2, H', W') that `grid` (H', W', 2) points at."""
    x, y = np.moveaxis(np.asarray(grid, dtype=np.float64), -1, 0)
    return np.stack([((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2])


def bilinear_oracle(image, grid, padding):
    positions = pixel_positions(grid, *image.shape)
    return ndimage.map_coordinates(image, positions, order=1, mode=SCIPY_MODE[padding])


def bicubic_oracle(image, grid, padding, a=-0.75):
    """Cubic convolution (Keys 1981) with the sharpness a = -0.75, as OpenCV and torch have it."""

    def kernel(t):
        t = np.abs(t)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    margin = 4 * max(image.shape)  # wide enough for every point these tests read
    padded = np.pad(image, margin, mode=NUMPY_MODE[padding])
    rows, columns = pixel_positions(grid, *image.shape)
    total = np.zeros(rows.shape)
    for i in range(-1, 3):
        for j in range(-1, 3):
            r, c = np.floor(rows).astype(int) + i, np.floor(columns).astype(int) + j
            total += kernel(rows - r) * kernel(columns - c) * padded[r + margin, c + margin]
    return total


ORACLES = {"bilinear": bilinear_oracle, "bicubic": bicubic_oracle}


# ---- reading an image ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("interpolation", ORACLES)
def test_reads_any_points_like_the_oracle(interpolation, padding, dtype):
    # images that are not square, each read at its own points, most of them outside
    images = rand(2, 3, 13, 17, seed=1, dtype=dtype)
    noise = torch.randn(2, 30, 25, 2, generator=rng(2), dtype=torch.float64)
    grid = (1.5 * noise).clamp(-6, 6).to(dtype)
    warped = sample(images, grid, padding, interpolation)
    assert warped.shape == (2, 3, 30, 25) and warped.dtype == dtype
    for image, points, found in zip(images.double().numpy(), grid, warped, strict=True):
        for channel, read in zip(image, found, strict=True):
            np.testing.assert_allclose(read, ORACLES[interpolation](channel, points, padding),
                                       rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("interpolation", ORACLES)
@settings(max_examples=40)
@given(points=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8),
       size=st.tuples(st.integers(1, 9), st.integers(1, 9)), padding=st.sampled_from(PADDING_MODES))
def test_images_of_any_size_are_read_like_the_oracle(interpolation, points, size, padding):
    image, grid = rand(1, 1, *size, seed=3), torch.tensor(points, dtype=torch.float64)[None, None]
    expected = ORACLES[interpolation](image[0, 0].numpy(), grid[0], padding)
    np.testing.assert_allclose(sample(image, grid, padding, interpolation)[0, 0], expected,
                               rtol=0, atol=1e-9)


@pytest.mark.parametrize(("padding", "edge", "one_out", "two_out"), [
    ("zeros", 5, 0, 0), ("border", 10, 10, 10), ("reflection", 10, 10, 20)])
def test_one_row_read_by_hand(padding, edge, one_out, two_out):
    row = torch.tensor([[[[10.0, 20, 30, 40]]]])  # pixel centres at x = -0.75, -0.25, 0.25, 0.75
    # two centres, half-way and a quarter of the way between two, the edge, one and two pixels out
    x = torch.tensor([-0.75, 0.25, 0.0, -0.375, -1.0, -1.25, -1.75])
    grid = torch.stack([x, torch.zeros(7)], dim=-1)[None, None]
    found = sample(row, grid, padding).flatten().tolist()
    assert found == [10, 30, 25, 17.5, edge, one_out, two_out]


@pytest.mark.parametrize("padding", ["zeros", "border"])  # kornia mirrors about other lines
@pytest.mark.parametrize("name", ["similarity", "affine", "projective"])
def test_warps_agree_with_kornias(name, padding):
    from kornia.geometry.transform import warp_affine, warp_perspective

    def pixels(height, width):
        """The matrix from (x, y, 1), 1 at the outer edge, to pixels (column, row, 1)."""
        return torch.tensor([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2],
                             [0, 0, 1]], dtype=torch.float64)

    images, size = rand(2, 3, 20, 27, seed=20), (23, 18)
    family = FAMILIES[name]
    params = family.identity() + 0.4 * rand(2, family.num_params, seed=21) - 0.2
    theta = family.theta(params)
    # kornia takes the map from the input's pixels to the output's
    matrix = pixels(*size) @ homogeneous(theta).inverse() @ pixels(20, 27).inverse()
    warp, matrix = ((warp_perspective, matrix) if name == "projective"
                    else (warp_affine, matrix[:, :2]))
    expected = warp(images, matrix, size, padding_mode=padding, align_corners=True)
    found = sample(images, family.grid_of(theta, size), padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # kornia's float64 is not quite


def test_zeros_bilinear_without_supersampling_is_what_you_get_unasked():
    images, grid = rand(1, 1, 6, 6, seed=4), 2 * rand(1, 5, 5, 2, seed=5)
    assert torch.equal(sample(images, grid), sample(images, grid, "zeros", "bilinear", 1))


@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [28, 32, 33])
def test_bicubic_at_the_identity_returns_the_image(size, dtype, tolerance, padding):
    images = rand(2, 3, size, size, seed=6, dtype=dtype)
    found = sample(images, identity_grid(size, 2, dtype), padding, "bicubic")
    torch.testing.assert_close(found, images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kwargs", [{"padding_mode": "wrap"}, {"interpolation": "lanczos"}])
def test_unknown_modes_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs.values()))):
        sample(torch.zeros(1, 1, 4, 4), identity_grid(4, dtype=torch.float32), **kwargs)


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("interpolation", ORACLES)
def test_gradients_to_image_and_grid_are_exact(interpolation, padding, supersample):
    y, x = torch.meshgrid(torch.linspace(0, 3, 6), torch.linspace(0, 4, 7), indexing="ij")
    images = torch.stack([(x + y).sin(), (x - 2 * y).cos()])[:, None].double().requires_grad_()
    # A quarter to three quarters of the way between two centres, inside and outside: bilinear
    # reading, and clamping to the border, have kinks on the centres.
    shape = (2, 2 * supersample, 3 * supersample, 2)
    whole = torch.randint(-3, 9, shape, generator=rng(7))
    pixels = whole + 0.25 + 0.5 * rand(*shape, seed=8)
    grid = ((2 * pixels + 1) / torch.tensor([7, 6]) - 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda images, grid: sample(images, grid, padding, interpolation, supersample),
        (images, grid), eps=1e-6, atol=1e-6)


# ---- supersampling -------------------------------------------------------------------------------


def fine_texture(size):
    """Rings that grow finer outwards, up to the finest that pixels can hold, values in [0, 1]."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return 0.5 + 0.5 * np.cos(np.pi * (x**2 + y**2) / size)


def area_average(image, params, size, fine):
    """The reference: fine x fine points under each output pixel, read by scipy, averaged."""
    angle, log_scale, tx, ty = params[0].tolist()
    axis = (np.arange(size * fine) + 0.5) / (size * fine) * 2 - 1
    x, y = np.meshgrid(axis, axis)
    scale, cos, sin = math.exp(log_scale), math.cos(angle), math.sin(angle)
    grid = np.stack([scale * (cos * x - sin * y) + tx, scale * (sin * x + cos * y) + ty], axis=-1)
    read = bilinear_oracle(image, grid, "border")
    return read.reshape(size, fine, size, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_supersampling_removes_aliasing_where_the_transform_shrinks(angle):
    image, size = fine_texture(96), 32  # three input pixels an output pixel and axis
    params = torch.tensor([[angle, math.log(0.9), 0.02, -0.03]], dtype=torch.float64)
    reference = area_average(image, params, size, fine=24)

    def error(k):
        grid = FAMILIES["similarity"].grid(params, k * size)
        shrunk = sample(torch.from_numpy(image)[None, None], grid, "border", supersample=k)
        return np.sqrt(np.square(shrunk[0, 0].numpy() - reference).mean())

    # measured: 0.19 without, 0.04 with 2 x 2, 0.01 or less with 4 x 4 points a pixel
    assert error(1) > 0.15 and error(2) < 0.05 and error(4) < 0.015


def test_shrinking_by_a_whole_factor_is_the_mean_of_the_pixels_shrunk():
    images = rand(2, 3, 96, 96, seed=9)
    shrunk = sample(images, identity_grid(4 * 24, 2), supersample=4)
    expected = images.reshape(2, 3, 24, 4, 24, 4).mean(dim=(3, 5))
    torch.testing.assert_close(shrunk, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("supersample", "weights"), [
    (2, [1 / 8, 6 / 8, 1 / 8]), (3, [1 / 9, 7 / 9, 1 / 9])])
def test_supersampling_at_the_identity_is_a_known_slight_blur_in_place(supersample, weights):
    """Not the exact identity: points between pixel centres read mixtures of pixels."""
    image = rand(1, 1, 20, 20, seed=10)
    blurred = sample(image, identity_grid(20 * supersample), "border", supersample=supersample)
    expected = image[0, 0].numpy()
    for axis in (0, 1):
        expected = ndimage.convolve1d(expected, weights, axis=axis, mode="nearest")
    np.testing.assert_allclose(blurred[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("supersample", [2, 3, 4])
def test_supersampling_at_the_identity_changes_a_smooth_image_by_less_than_a_percent(supersample):
    axis = torch.linspace(0, 2 * math.pi, 32, dtype=torch.float64)
    smooth = (0.5 + 0.25 * axis.sin()[:, None] + 0.25 * axis.cos()[None])[None, None]
    kept = sample(smooth, identity_grid(supersample * 32), "border", supersample=supersample)
    assert (kept - smooth).abs().max() < 0.01


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_coarse_grids_are_refused(dtype):
    with pytest.raises(TypeError, match=f"^grid: {dtype}"):
        sample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grid_dtype", [torch.float32, torch.float64])
def test_images_are_read_in_the_grids_precision_and_keep_their_type(dtype, grid_dtype):
    images = rand(1, 3, 8, 8, seed=11, dtype=dtype)
    grid = (3 * rand(1, 8, 8, 2, seed=12) - 1.5).to(grid_dtype)
    warped = sample(images, grid)
    assert warped.dtype == dtype
    assert torch.equal(warped, sample(images.to(grid_dtype), grid).to(dtype))


@pytest.mark.parametrize("interpolation", ORACLES)
def test_whole_numbers_are_read_between_them_too(interpolation):
    """Not cut off to whole ones, and not wrapped around where bicubic overshoots."""
    images = (255 * rand(1, 3, 8, 8, seed=11)).to(torch.uint8)
    grid = (3 * rand(1, 8, 8, 2, seed=12) - 1.5).float()
    expected = sample(images.float(), grid, interpolation=interpolation)
    assert torch.equal(sample(images, grid, interpolation=interpolation), expected)


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("interpolation", ORACLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(interpolation, supersample, dtype):
    images = rand(2, 3, 8, 8, seed=13, dtype=dtype)
    grid = torch.randn(2, 16, 16, 2, generator=rng(14))
    plain = sample(images, grid, "border", interpolation, supersample)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(images, grid, "border", interpolation, supersample), plain)
