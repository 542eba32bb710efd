"""The sampler against scipy.ndimage and a cubic convolution in numpy, which know nothing of grid_sample."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from stn_cifar.sampler import outside_share, sample
from stn_cifar.transforms import FAMILIES

PADDINGS = ["zeros", "border", "reflection"]
# what scipy and numpy call them, for pictures that end half a pixel outside the centres of their outer pixels
SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest", "reflection": "reflect"}
NUMPY_MODE = {"zeros": "constant", "border": "edge", "reflection": "symmetric"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
few = settings(deadline=None, derandomize=True, max_examples=40)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def identity_grid(size, batch=1, dtype=torch.float64):
    return FAMILIES["affine"].grid(FAMILIES["affine"].identity().to(dtype).repeat(batch, 1), size)


def pixel_positions(grid, height, width):
    """Rows and columns (2, H', W') that `grid` (H', W', 2) points at; -1 and 1 are the outer edges."""
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


# ---- reading a picture -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", ORACLES)
def test_reads_any_points_like_the_oracle(interpolation, padding, dtype):
    # a batch of pictures that are not square, each read at its own points, most of them outside
    images = torch.rand(2, 3, 13, 17, generator=rng(1), dtype=torch.float64).to(dtype)
    grid = (1.5 * torch.randn(2, 30, 25, 2, generator=rng(2), dtype=torch.float64)).clamp(-6, 6).to(dtype)
    warped = sample(images, grid, padding, interpolation)
    assert warped.shape == (2, 3, 30, 25)
    assert warped.dtype == dtype
    for i in range(2):
        for channel in range(3):
            expected = ORACLES[interpolation](images[i, channel].double().numpy(), grid[i], padding)
            np.testing.assert_allclose(warped[i, channel], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("interpolation", ORACLES)
@few
@given(points=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8),
       size=st.tuples(st.integers(1, 9), st.integers(1, 9)), padding=st.sampled_from(PADDINGS))
def test_pictures_of_any_size_are_read_like_the_oracle(interpolation, points, size, padding):
    image = torch.rand(1, 1, *size, generator=rng(3), dtype=torch.float64)
    grid = torch.tensor(points, dtype=torch.float64)[None, None]
    expected = ORACLES[interpolation](image[0, 0].numpy(), grid[0], padding)
    np.testing.assert_allclose(sample(image, grid, padding, interpolation)[0, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("padding", "one_out", "two_out"), [
    ("zeros", 0, 0), ("border", 10, 10), ("reflection", 10, 20),
])
def test_one_row_read_by_hand(padding, one_out, two_out):
    row = torch.tensor([[[[10.0, 20, 30, 40]]]])  # pixel centres at x = -0.75, -0.25, 0.25, 0.75
    # two centres, half-way and a quarter of the way between two, and one and two pixels left of the picture
    x = torch.tensor([-0.75, 0.25, 0.0, -0.375, -1.25, -1.75])
    grid = torch.stack([x, torch.zeros(6)], dim=-1)[None, None]
    assert sample(row, grid, padding).flatten().tolist() == [10, 30, 25, 17.5, one_out, two_out]


@pytest.mark.parametrize(("padding", "at_the_edge"), [("zeros", 5), ("border", 10), ("reflection", 10)])
def test_the_edge_lies_half_a_pixel_outside_the_last_centre(padding, at_the_edge):
    row = torch.tensor([[[[10.0, 20, 30, 40]]]])
    assert sample(row, torch.tensor([[[[-1.0, 0.0]]]]), padding).item() == at_the_edge


def test_zeros_bilinear_without_supersampling_is_what_you_get_unasked():
    images, grid = torch.rand(1, 1, 6, 6, generator=rng(4)), torch.randn(1, 5, 5, 2, generator=rng(5))
    assert torch.equal(sample(images, grid), sample(images, grid, "zeros", "bilinear", supersample=1))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [28, 32, 33])
def test_bicubic_at_the_identity_returns_the_picture(size, dtype, tolerance, padding):
    images = torch.rand(2, 3, size, size, generator=rng(6), dtype=dtype)
    error = (sample(images, identity_grid(size, 2, dtype), padding, "bicubic") - images).abs().max().item()
    assert error <= tolerance


@pytest.mark.parametrize("kwargs", [{"padding_mode": "wrap"}, {"interpolation": "lanczos"}])
def test_unknown_modes_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs.values()))):
        sample(torch.zeros(1, 1, 4, 4), identity_grid(4, dtype=torch.float32), **kwargs)


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", ORACLES)
def test_gradients_to_picture_and_grid_are_exact(interpolation, padding, supersample):
    y, x = torch.meshgrid(torch.linspace(0, 3, 6), torch.linspace(0, 4, 7), indexing="ij")
    images = torch.stack([(x + y).sin(), (x - 2 * y).cos()])[:, None].double().requires_grad_()
    # A quarter to three quarters of the way between two centres, inside and outside. The kinks of bilinear
    # reading, and of clamping to the border, lie on the centres: there only one-sided derivatives exist.
    shape = (2, 2 * supersample, 3 * supersample, 2)
    whole = torch.randint(-3, 9, shape, generator=rng(7))
    pixels = whole + 0.25 + 0.5 * torch.rand(shape, generator=rng(8), dtype=torch.float64)
    grid = ((2 * pixels + 1) / torch.tensor([7, 6]) - 1).requires_grad_()

    def pixels_read(images, grid):
        return sample(images, grid, padding, interpolation, supersample)

    assert torch.autograd.gradcheck(pixels_read, (images, grid), eps=1e-6, atol=1e-6)


# ---- supersampling -----------------------------------------------------------------------------------------


def fine_texture(size):
    """Rings that grow finer outwards up to the finest a pixel picture can hold, values in [0, 1]."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return 0.5 + 0.5 * np.cos(np.pi * (x**2 + y**2) / size)


def shrunk(image, params, size, supersample):
    grid = FAMILIES["similarity"].grid(params, supersample * size)
    return sample(torch.from_numpy(image)[None, None], grid, "border", supersample=supersample)[0, 0].numpy()


def area_average(image, params, size, fine):
    """The reference: fine x fine points under each output pixel, read by scipy, averaged."""
    angle, log_scale, tx, ty = params[0].tolist()
    axis = (np.arange(size * fine) + 0.5) / (size * fine) * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    scale = math.exp(log_scale)
    grid = np.stack([scale * (math.cos(angle) * x - math.sin(angle) * y) + tx,
                     scale * (math.sin(angle) * x + math.cos(angle) * y) + ty], axis=-1)
    return bilinear_oracle(image, grid, "border").reshape(size, fine, size, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_supersampling_removes_aliasing_where_the_transform_shrinks(angle):
    image, size = fine_texture(96), 32  # three input pixels an output pixel and axis
    params = torch.tensor([[angle, math.log(0.9), 0.02, -0.03]], dtype=torch.float64)
    reference = area_average(image, params, size, fine=24)
    rms = {k: np.sqrt(np.square(shrunk(image, params, size, k) - reference).mean()) for k in (1, 2, 4)}
    # measured: 0.19 without, 0.04 with 2 x 2, 0.01 or less with 4 x 4 points a pixel (picture: 0 to 1)
    assert rms[1] > 0.15
    assert rms[2] < 0.05
    assert rms[4] < 0.015


def test_shrinking_by_a_whole_factor_is_the_mean_of_the_pixels_shrunk():
    images = torch.rand(2, 3, 96, 96, generator=rng(9), dtype=torch.float64)
    shrunk = sample(images, identity_grid(4 * 24, 2), supersample=4)
    expected = images.reshape(2, 3, 24, 4, 24, 4).mean(dim=(3, 5))
    torch.testing.assert_close(shrunk, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("supersample", [2, 3])
def test_supersampling_keeps_the_place_of_the_output_pixels(supersample):
    # a ramp is the same under any symmetric average: a shifted one would show
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    kept = sample(ramp, identity_grid(16 * supersample), supersample=supersample)
    torch.testing.assert_close(kept[..., 1:-1, 1:-1], ramp[..., 1:-1, 1:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("supersample", "weights"), [(2, [1 / 8, 6 / 8, 1 / 8]), (3, [1 / 9, 7 / 9, 1 / 9])])
def test_supersampling_at_the_identity_is_a_known_slight_blur(supersample, weights):
    """Not the exact identity: points between pixel centres read mixtures, and their average remains one."""
    image = torch.rand(1, 1, 20, 20, generator=rng(10), dtype=torch.float64)
    blurred = sample(image, identity_grid(20 * supersample), "border", supersample=supersample)[0, 0]
    expected = image[0, 0].numpy()
    for axis in (0, 1):
        expected = ndimage.convolve1d(expected, weights, axis=axis, mode="nearest")
    np.testing.assert_allclose(blurred, expected, rtol=0, atol=1e-12)


def test_supersampling_at_the_identity_changes_a_smooth_picture_by_less_than_a_percent():
    axis = torch.linspace(0, 2 * math.pi, 32, dtype=torch.float64)
    smooth = (0.5 + 0.25 * axis.sin()[:, None] + 0.25 * axis.cos()[None])[None, None]
    for supersample in (2, 3, 4):
        kept = sample(smooth, identity_grid(supersample * 32), "border", supersample=supersample)
        assert (kept - smooth).abs().max() < 0.01


# ---- precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_coarse_grids_are_refused(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        sample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grid_dtype", [torch.float32, torch.float64])
def test_pictures_of_any_type_are_read_in_the_grids_precision(dtype, grid_dtype):
    images = (torch.rand(1, 3, 8, 8, generator=rng(11)) * 255).to(dtype)
    grid = torch.randn(1, 8, 8, 2, generator=rng(12), dtype=grid_dtype)
    warped = sample(images, grid)
    assert warped.dtype == grid_dtype
    assert torch.equal(warped, sample(images.to(grid_dtype), grid))


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("interpolation", ORACLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(interpolation, supersample, dtype):
    images = torch.rand(2, 3, 8, 8, generator=rng(13)).to(dtype)
    grid = torch.randn(2, 16, 16, 2, generator=rng(14))
    plain = sample(images, grid, "border", interpolation, supersample)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = sample(images, grid, "border", interpolation, supersample)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, plain)


# ---- how much lies outside ---------------------------------------------------------------------------------


def test_outside_share_counts_points_by_hand():
    grid = torch.tensor([
        [[[0.0, 0.0], [1.0, -1.0]], [[-1.0, 1.0], [0.5, 0.9]]],  # the edge still belongs to it
        [[[1.01, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],  # out on the right
        [[[0.0, -1.01], [-2.0, 0.0]], [[3.0, 3.0], [0.0, 0.0]]],  # above; left; both at once counts once
        [[[9.0, 9.0], [-9.0, 0.0]], [[0.0, 9.0], [2.0, -2.0]]],
    ])
    assert outside_share(grid).tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize(("name", "params", "share"), [
    ("translation", [0, 0], 0), ("translation", [0.5, 0], 1 / 4), ("translation", [0, -1], 1 / 2),
    ("translation", [1, 1], 3 / 4), ("attention", [math.log(2), 0, 0], 3 / 4),
    ("attention", [math.log(0.5), 0.5, 0.5], 0), ("rotation", [math.pi / 2], 0),
])
def test_outside_share_of_known_warps(name, params, share):
    grid = FAMILIES[name].grid(torch.tensor([params], dtype=torch.float64), 32)
    assert outside_share(grid).tolist() == [share]
