"""Transformer families against oracles that know nothing of affine_grid and grid_sample: scipy and numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import RBFInterpolator

from stn_cifar import transforms
from stn_cifar.sampler import sample
from stn_cifar.transforms import FAMILIES, compose, decompose, inverse

NAMES = list(FAMILIES)
MATRIX = ["translation", "rotation", "attention", "similarity", "affine", "projective"]
AFFINE = MATRIX[:-1]
PADDINGS = ["zeros", "border", "reflection"]
# what scipy calls them: with the picture ending half a pixel outside the centres of its outermost pixels
SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest", "reflection": "reflect"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
few = settings(deadline=None, derandomize=True, max_examples=25)
many = settings(deadline=None, derandomize=True, max_examples=100)

# Reach of each parameter around the identity: strong warps, yet far from singular ones.
ANGLE, LOG_SCALE, SHIFT, ENTRY, TILT, DISPLACEMENT = 3.1, 0.7, 0.6, 0.4, 0.3, 0.3
REACH = {
    "translation": [SHIFT] * 2,
    "rotation": [ANGLE],
    "attention": [LOG_SCALE, SHIFT, SHIFT],
    "similarity": [ANGLE, LOG_SCALE, SHIFT, SHIFT],
    "affine": [ENTRY, ENTRY, SHIFT] * 2,
    "projective": [ENTRY, ENTRY, SHIFT] * 2 + [TILT] * 2,
    "tps": [DISPLACEMENT] * 32,
}


def rng(seed):
    return torch.Generator().manual_seed(seed)


def identity(name, batch=1, dtype=torch.float64):
    return FAMILIES[name].identity().to(dtype).repeat(batch, 1)


def random_params(name, seed, batch=3, dtype=torch.float64):
    """Parameters (batch, P), uniform within REACH of the identity."""
    offset = torch.rand(batch, FAMILIES[name].num_params, generator=rng(seed), dtype=torch.float64) * 2 - 1
    return (identity(name, batch) + offset * torch.tensor(REACH[name], dtype=torch.float64)).to(dtype)


@st.composite
def params_of(draw, name):
    """Hypothesis' choice of parameters (1, P) within REACH of the identity."""
    offsets = [draw(st.floats(-reach, reach)) for reach in REACH[name]]
    return identity(name) + torch.tensor([offsets], dtype=torch.float64)


@st.composite
def theta_of(draw, names=tuple(MATRIX)):
    name = draw(st.sampled_from(names))
    return FAMILIES[name].theta(draw(params_of(name)))


# ---- the oracles -------------------------------------------------------------------------------------------


def oracle_matrix(name, params):
    """The (3, 3) matrix from output to input coordinates, put together from shift, turn and zoom."""
    p = np.asarray(params, dtype=np.float64)

    def shift(tx, ty):
        return np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])

    def turn(angle):
        return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])

    def zoom(log_scale):
        return np.diag([np.exp(log_scale), np.exp(log_scale), 1])

    return {
        "translation": lambda: shift(*p),
        "rotation": lambda: turn(p[0]),
        "attention": lambda: shift(p[1], p[2]) @ zoom(p[0]),
        "similarity": lambda: shift(p[2], p[3]) @ turn(p[0]) @ zoom(p[1]),
        "affine": lambda: np.array([p[:3], p[3:], [0, 0, 1]]),
        "projective": lambda: np.array([p[:3], p[3:6], [0.45 * np.tanh(p[6]), 0.45 * np.tanh(p[7]), 1]]),
    }[name]()


def pixels_from_coordinates(height, width):
    """The matrix from (x, y, 1) to pixel (row, column, 1); -1 and 1 are the outer edges of the picture."""
    return np.array([[0, height / 2, (height - 1) / 2], [width / 2, 0, (width - 1) / 2], [0, 0, 1]])


def output_centres(height, width):
    """Centres (x, y) of the output's pixels, (H*W, 2)."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height * 2 - 1, (np.arange(width) + 0.5) / width * 2 - 1,
                       indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def apply_matrix(matrix, points):
    """A (3, 3) or (2, 3) matrix on points (N, 2)."""
    image = np.c_[points, np.ones(len(points))] @ np.asarray(matrix).T
    return image[:, :2] / image[:, 2:] if image.shape[1] == 3 else image


def bookstein(control, values, points):
    """Closed form of the thin plate spline (Bookstein 1989) from `values` (K, 2) at `control`."""

    def kernel(a, b):
        r = np.linalg.norm(a[:, None] - b[None], axis=-1)
        return r**2 * np.log(np.where(r > 0, r, 1))

    count = len(control)
    affine = np.c_[np.ones(count), control]
    system = np.block([[kernel(control, control), affine], [affine.T, np.zeros((3, 3))]])
    solution = np.linalg.solve(system, np.r_[values, np.zeros((3, 2))])
    return kernel(points, control) @ solution[:count] + np.c_[np.ones(len(points)), points] @ solution[count:]


def oracle_control_points():
    """4 x 4 points (x, y), from corner to corner, row by row."""
    return np.array([(x, y) for y in (-1, -1 / 3, 1 / 3, 1) for x in (-1, -1 / 3, 1 / 3, 1)])


def oracle_points(name, params, height, width):
    """Where the output's pixels are read, (H*W, 2) in (x, y)."""
    centres = output_centres(height, width)
    if name == "tps":
        control = oracle_control_points()
        return bookstein(control, control + np.asarray(params).reshape(-1, 2), centres)
    return apply_matrix(oracle_matrix(name, params), centres)


def oracle_warp(image, points, size, padding):
    """`image` (H, W) read at `points` (N, 2) by scipy's map_coordinates: a picture of `size`."""
    rows_columns = apply_matrix(pixels_from_coordinates(*image.shape), points)
    return ndimage.map_coordinates(image, rows_columns.T, order=1, mode=SCIPY_MODE[padding]).reshape(size)


# ---- the warp, from parameters to pixels -------------------------------------------------------------------

# neither square nor of one size: a swap of x and y, or of input and output size, cannot hide
INPUT, OUTPUT = (20, 27), (23, 18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", AFFINE)
def test_affine_families_warp_like_scipy_affine_transform(name, padding, dtype):
    images = torch.rand(3, 2, *INPUT, generator=rng(1), dtype=torch.float64).to(dtype)
    params = random_params(name, seed=2, dtype=dtype)
    warped = sample(images, FAMILIES[name].grid(params, OUTPUT), padding)
    assert warped.dtype == dtype
    for i in range(3):
        matrix = (pixels_from_coordinates(*INPUT) @ oracle_matrix(name, params[i])
                  @ np.linalg.inv(pixels_from_coordinates(*OUTPUT)))
        for channel in range(2):
            image = images[i, channel].double().numpy()
            expected = ndimage.affine_transform(image, matrix[:2, :2], matrix[:2, 2], output_shape=OUTPUT,
                                                order=1, mode=SCIPY_MODE[padding])
            np.testing.assert_allclose(warped[i, channel], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_warps_like_scipy_map_coordinates(name, padding, dtype):
    images = torch.rand(3, 1, *INPUT, generator=rng(3), dtype=torch.float64).to(dtype)
    params = random_params(name, seed=4, dtype=dtype)
    warped = sample(images, FAMILIES[name].grid(params, OUTPUT), padding)
    for i in range(3):
        points = oracle_points(name, params[i].double().numpy(), *OUTPUT)
        expected = oracle_warp(images[i, 0].double().numpy(), points, OUTPUT, padding)
        np.testing.assert_allclose(warped[i, 0], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", NAMES)
@few
@given(data=st.data())
def test_any_parameters_warp_like_the_oracle(name, data):
    params = data.draw(params_of(name))
    padding = data.draw(st.sampled_from(PADDINGS))
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    image = torch.rand(1, 1, *INPUT, generator=rng(5), dtype=torch.float64)
    warped = sample(image, FAMILIES[name].grid(params, size), padding)
    expected = oracle_warp(image[0, 0].numpy(), oracle_points(name, params[0].numpy(), *size), size, padding)
    np.testing.assert_allclose(warped[0, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [3, 4, 6])
def test_thin_plate_spline_equals_scipys_for_any_number_of_control_points(side, dtype):
    axis = np.linspace(-1, 1, side)
    control = np.array([(x, y) for y in axis for x in axis])
    moved = 0.3 * torch.randn(2, side**2, 2, generator=rng(6), dtype=torch.float64)
    theta = torch.from_numpy(control) + moved
    grid = FAMILIES["tps"].grid_of(theta.to(dtype), OUTPUT)
    for i in range(2):
        # r^2 log r here, r^2 log r^2 there: a factor of two that the solved weights absorb
        spline = RBFInterpolator(control, theta[i].numpy(), kernel="thin_plate_spline", degree=1)
        np.testing.assert_allclose(grid[i].reshape(-1, 2), spline(output_centres(*OUTPUT)), rtol=0,
                                   atol={torch.float32: 1e-5, torch.float64: 1e-9}[dtype])


def test_thin_plate_spline_passes_through_its_corner_control_points():
    params = random_params("tps", seed=7)
    # the corner pixels of a large output almost touch the corners of [-1, 1]^2
    grid = FAMILIES["tps"].grid(params, 256)
    corners = torch.stack([grid[:, 0, 0], grid[:, 0, -1], grid[:, -1, 0], grid[:, -1, -1]], dim=1)
    where = torch.tensor([[-1, -1], [1, -1], [-1, 1], [1, 1]]) + params.reshape(-1, 16, 2)[:, [0, 3, 12, 15]]
    torch.testing.assert_close(corners, where, rtol=0, atol=0.02)


@few
@given(theta=theta_of(tuple(AFFINE)))
def test_thin_plate_spline_with_affinely_moved_control_points_is_that_affine_map(theta):
    moved = torch.from_numpy(apply_matrix(theta[0], oracle_control_points()))[None]
    bent, straight = FAMILIES["tps"].grid_of(moved, OUTPUT), FAMILIES["affine"].grid_of(theta, OUTPUT)
    torch.testing.assert_close(bent, straight, rtol=0, atol=1e-10)


# ---- the identity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [28, 32, 33, 96])
@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_exact_identity(name, size, dtype, tolerance):
    # black and white noise: a shift shows in full, in both directions
    images = torch.rand(2, 3, size, size, generator=rng(8), dtype=dtype).round()
    grid = FAMILIES[name].grid(identity(name, 2, dtype), size)
    assert grid.shape == (2, size, size, 2)
    assert grid.dtype == dtype
    for padding in PADDINGS:
        error = (sample(images, grid, padding) - images).abs().max().item()
        assert error <= tolerance, padding


@pytest.mark.parametrize("name", NAMES)
def test_identity_parameters_are_floats_ready_for_use(name):
    start = FAMILIES[name].identity()
    assert start.shape == (FAMILIES[name].num_params,)
    assert start.dtype == torch.float32
    image = torch.rand(1, 1, 8, 8, generator=rng(9))
    torch.testing.assert_close(sample(image, FAMILIES[name].grid(start[None], 8)), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_identity_grid_holds_the_pixel_centres_as_x_y(name):
    grid = FAMILIES[name].grid(identity(name), (2, 4))
    x, y = torch.tensor([-0.75, -0.25, 0.25, 0.75]), torch.tensor([-0.5, 0.5])
    expected = torch.stack([x.expand(2, 4), y[:, None].expand(2, 4)], dim=-1)[None].double()
    torch.testing.assert_close(grid, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_int_is_a_square_size(name):
    params = random_params(name, seed=10)
    assert torch.equal(FAMILIES[name].grid(params, 7), FAMILIES[name].grid(params, (7, 7)))


# ---- direction, where an eye can check it ------------------------------------------------------------------


def picture(*rows):
    """A picture (1, 1, H, W) from rows of text: '#' is 1, '+' is one half, '.' is 0."""
    return torch.tensor([[[{"#": 1.0, "+": 0.5, ".": 0.0}[c] for c in row] for row in rows]])[None].double()


def warp(name, params, image, size=None):
    grid = FAMILIES[name].grid(torch.tensor([params], dtype=torch.float64), size or image.shape[-2:])
    return sample(image, grid)


def shows(warped, *rows):
    torch.testing.assert_close(warped, picture(*rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "params"), [
    ("translation", [0.5, 0]), ("attention", [0, 0.5, 0]), ("similarity", [0, 0, 0.5, 0]),
    ("affine", [1, 0, 0.5, 0, 1, 0]), ("projective", [1, 0, 0.5, 0, 1, 0, 0, 0]), ("tps", [0.5, 0] * 16),
])
def test_positive_x_shift_moves_the_content_left(name, params):
    # half a half-width is one pixel of four
    shows(warp(name, params, picture("....", "....", ".#..", "....")), "....", "....", "#...", "....")


@pytest.mark.parametrize(("name", "params"), [
    ("translation", [0, 0.5]), ("attention", [0, 0, 0.5]), ("similarity", [0, 0, 0, 0.5]),
    ("affine", [1, 0, 0, 0, 1, 0.5]), ("projective", [1, 0, 0, 0, 1, 0.5, 0, 0]), ("tps", [0, 0.5] * 16),
])
def test_positive_y_shift_moves_the_content_up(name, params):
    shows(warp(name, params, picture("....", "....", ".#..", "....")), "....", ".#..", "....", "....")


def test_a_shift_by_half_a_pixel_spreads_a_pixel_evenly_over_two():
    dot = picture("....", ".#..", "....", "....")
    shows(warp("translation", [-0.25, 0], dot), "....", ".++.", "....", "....")


@pytest.mark.parametrize(("name", "params"), [
    ("rotation", [math.pi / 2]), ("similarity", [math.pi / 2, 0, 0, 0]), ("affine", [0, -1, 0, 1, 0, 0]),
])
def test_a_positive_quarter_turn_turns_the_content_counter_clockwise(name, params):
    flag = picture("##..", "#...", "#...", "#...")
    shows(warp(name, params, flag), "....", "....", "#...", "####")
    torch.testing.assert_close(warp(name, params, flag), torch.rot90(flag, 1, (2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degrees", [-150, -60, -20, 20, 45, 120, 170])
def test_a_spot_on_the_right_turns_to_the_given_angle_on_the_screen(degrees):
    y, x = np.mgrid[-1:1:33j, -1:1:33j]
    spot = torch.from_numpy(np.exp(-((x - 0.5) ** 2 + y**2) / 0.02))[None, None]
    turned = warp("rotation", [math.radians(degrees)], spot)[0, 0].numpy()
    seen = math.degrees(math.atan2(-(turned * y).sum(), (turned * x).sum()))  # y points down, angles up
    assert abs(seen - degrees) < 0.5


@pytest.mark.parametrize(("name", "params"), [
    ("attention", [math.log(2), 0, 0]), ("similarity", [0, math.log(2), 0, 0]),
    ("affine", [2, 0, 0, 0, 2, 0]), ("projective", [2, 0, 0, 0, 2, 0, 0, 0]),
])
def test_a_scale_of_two_shows_the_content_at_half_its_size(name, params):
    large = picture("......", ".####.", ".####.", ".####.", ".####.", "......")
    shows(warp(name, params, large), "......", "......", "..##..", "..##..", "......", "......")


def test_attention_crops_a_quarter_to_its_own_size_without_resampling():
    image = torch.rand(1, 3, 32, 32, generator=rng(11), dtype=torch.float64)
    upper_right = warp("attention", [math.log(0.5), 0.5, -0.5], image, size=16)
    torch.testing.assert_close(upper_right, image[:, :, :16, 16:], rtol=0, atol=1e-12)


def test_positive_tilt_in_x_enlarges_the_right_side():
    # the denominator grows to the right, so neighbours there read inputs that lie closer together
    grid = FAMILIES["projective"].grid(torch.tensor([[1.0, 0, 0, 0, 1, 0, 0.5, 0]]), 32)[0, 16, :, 0]
    steps = grid.diff()
    assert (steps.diff() < 0).all()


# ---- back again --------------------------------------------------------------------------------------------


def smooth_picture(size):
    """A wave of two cycles a side, values in [0, 1]: bilinear reading is off by little."""
    axis = torch.linspace(0, 4 * math.pi, size, dtype=torch.float64)
    return (0.5 + 0.25 * axis.sin()[:, None] + 0.25 * axis.cos()[None])[None, None]


def stays_inside(*grids):
    """Mask (H, W) of the output pixels whose way leads through the picture's inside only."""
    return torch.stack([(grid[0].abs() < 0.95).all(dim=-1) for grid in grids]).all(dim=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MATRIX)
def test_a_warp_and_its_inverse_return_the_picture(name, seed):
    size, image = 96, smooth_picture(96)
    theta = FAMILIES[name].theta(random_params(name, seed, batch=1))
    back = FAMILIES[name].grid_of(inverse(theta), size)
    # a coarse intermediate picture would lose detail where the warp shrinks: take four times the pixels
    there = FAMILIES[name].grid_of(theta, 4 * size)
    returned = sample(sample(image, there), back)
    centres = FAMILIES[name].grid(identity(name), size)
    inside = stays_inside(back, centres)
    assert inside.float().mean() > 0.1
    assert (returned - image)[0, 0][inside].abs().max() < 0.01
    # the same warp twice, instead of there and back, is far off
    twice = sample(sample(image, there), FAMILIES[name].grid_of(theta, size))
    assert (twice - image)[0, 0][inside].abs().max() > 0.1


# ---- gradients ---------------------------------------------------------------------------------------------


def params_off_the_kinks(name, size, image_size, batch=2):
    """Random parameters whose grid keeps clear of pixel centres: bilinear reading has a kink there.

    The kinks of border (clamping) and reflection lie on pixel centres or where the picture is constant.
    """
    for seed in range(100):
        params = random_params(name, seed, batch)
        grid = FAMILIES[name].grid(params, size)
        pixels = ((grid + 1) * torch.tensor([image_size[1], image_size[0]]) - 1) / 2
        if (pixels - pixels.round()).abs().min() > 1e-3:
            return params
    raise AssertionError("no parameters clear of the kinks")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_from_pixels_to_parameters_are_exact(name, padding):
    image_size, size = (9, 10), (4, 3)
    y, x = torch.meshgrid(torch.linspace(0, 3, 9), torch.linspace(0, 4, 10), indexing="ij")
    images = torch.stack([(x + y).sin(), (x - 2 * y).cos()])[:, None].double()
    params = params_off_the_kinks(name, size, image_size).requires_grad_()

    def pixels(params, images):
        return sample(images, FAMILIES[name].grid(params, size), padding)

    assert torch.autograd.gradcheck(pixels, (params, images.requires_grad_()), eps=1e-6, atol=1e-6)
    gradient, = torch.autograd.grad(pixels(params, images).square().sum(), params)
    assert (gradient != 0).all()  # every parameter of every picture learns


@pytest.mark.parametrize("name", MATRIX)
def test_gradients_through_compose_inverse_and_decompose_are_exact(name):
    def poses(params):
        theta = FAMILIES[name].theta(params)
        return torch.stack([*decompose(compose(theta, theta)), *decompose(inverse(theta))])

    assert torch.autograd.gradcheck(poses, random_params(name, seed=12, batch=2).requires_grad_())


# ---- the laws of composition -------------------------------------------------------------------------------


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@many
@given(theta_of(), theta_of(), theta_of())
def test_compose_is_associative(a, b, c):
    close(compose(compose(a, b), c), compose(a, compose(b, c)))


@many
@given(theta_of())
def test_inverse_undoes_theta_on_both_sides(theta):
    rows = theta.shape[-2]
    assert inverse(theta).shape == theta.shape
    for composed in (compose(theta, inverse(theta)), compose(inverse(theta), theta)):
        close(composed, torch.eye(3, dtype=torch.float64)[None, :rows])
    close(inverse(inverse(theta)), theta)


@many
@given(theta_of(), theta_of())
def test_inverse_of_a_composition_runs_backwards(outer, inner):
    close(inverse(compose(outer, inner)), compose(inverse(inner), inverse(outer)))


@many
@given(theta_of(), theta_of())
def test_compose_is_outer_of_inner_at_every_point(outer, inner):
    points = output_centres(5, 7)
    expected = apply_matrix(outer[0], apply_matrix(inner[0], points))
    composed = compose(outer, inner)
    grid = FAMILIES["projective" if composed.shape[-2] == 3 else "affine"].grid_of(composed, (5, 7))
    np.testing.assert_allclose(grid[0].reshape(-1, 2), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("outer_name", "inner_name"),
                         [("rotation", "translation"), ("affine", "similarity"), ("projective", "rotation")])
def test_sampling_in_sequence_equals_sampling_once_by_the_composition(outer_name, inner_name):
    size, image = 96, smooth_picture(96)
    outer = FAMILIES[outer_name].theta(random_params(outer_name, 13, batch=1))
    inner = FAMILIES[inner_name].theta(random_params(inner_name, 13, batch=1))
    first = FAMILIES[outer_name].grid_of(outer, 4 * size)
    second = FAMILIES[inner_name].grid_of(inner, size)
    in_sequence = sample(sample(image, first), second)
    family = FAMILIES["projective" if outer_name == "projective" else "affine"]
    once, wrong = (family.grid_of(compose(*pair), size) for pair in ((outer, inner), (inner, outer)))
    inside = stays_inside(second, once)
    assert inside.float().mean() > 0.1
    assert (in_sequence - sample(image, once))[0, 0][inside].abs().max() < 0.01
    assert (in_sequence - sample(image, wrong))[0, 0][inside].abs().max() > 0.1


@pytest.mark.parametrize("outer", MATRIX)
@pytest.mark.parametrize("inner", MATRIX)
def test_compose_keeps_affine_maps_affine_and_normalizes_projective_ones(outer, inner):
    composed = compose(*(FAMILIES[name].theta(random_params(name, 14)) for name in (outer, inner)))
    if "projective" in (outer, inner):
        assert composed.shape == (3, 3, 3)
        assert (composed[:, 2, 2] == 1).all()
    else:
        assert composed.shape == (3, 2, 3)


def test_a_singular_map_has_no_inverse():
    with pytest.raises(torch.linalg.LinAlgError):
        inverse(torch.zeros(1, 2, 3))


def test_a_thin_plate_spline_neither_composes_nor_inverts():
    theta = FAMILIES["tps"].theta(identity("tps"))
    assert not FAMILIES["tps"].is_matrix
    assert all(FAMILIES[name].is_matrix for name in MATRIX)
    for call in (lambda: compose(theta, theta), lambda: inverse(theta)):
        with pytest.raises(ValueError, match="no matrix family"):
            call()


# ---- theta taken apart -------------------------------------------------------------------------------------

def linear_part(angle, scale_x, scale_y, shear):
    """The (2, 2) matrix that `Pose` says it took apart."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rotation @ np.array([[scale_x, scale_x * shear], [0, scale_y]])


away_from_zero = st.floats(0.1, 3) | st.floats(-3, -0.1)


@many
@given(angle=st.floats(-3.1, 3.1), scale_x=st.floats(0.1, 3), scale_y=away_from_zero, shear=st.floats(-2, 2),
       shift=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_decompose_reads_back_what_theta_was_built_of(angle, scale_x, scale_y, shear, shift):
    linear = linear_part(angle, scale_x, scale_y, shear)
    pose = decompose(torch.from_numpy(np.c_[linear, shift])[None])
    np.testing.assert_allclose([part.item() for part in pose], [angle, scale_x, scale_y, shear, *shift],
                               rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(pose.scale.item(), np.sqrt(abs(np.linalg.det(linear))), rtol=1e-8)


@many
@given(entries=st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_decomposed_parts_rebuild_any_regular_theta(entries):
    theta = np.array(entries).reshape(2, 3)
    if abs(np.linalg.det(theta[:, :2])) < 1e-3:
        theta[:, :2] += np.eye(2) * 4.5  # dominant diagonal: regular
    *parts, shift_x, shift_y = (part.item() for part in decompose(torch.from_numpy(theta)[None]))
    rebuilt = np.c_[linear_part(*parts), [shift_x, shift_y]]
    np.testing.assert_allclose(rebuilt, theta, rtol=1e-9, atol=1e-9)
    assert parts[1] > 0  # scale_x: a mirror image shows in scale_y


@many
@given(angle=st.floats(-3.1, 3.1), log_scale=st.floats(-2, 2), tx=st.floats(-2, 2), ty=st.floats(-2, 2))
def test_similarity_parameters_are_read_back(angle, log_scale, tx, ty):
    params = torch.tensor([[angle, log_scale, tx, ty]], dtype=torch.float64)
    pose = decompose(FAMILIES["similarity"].theta(params))
    close(torch.stack([pose.angle, pose.scale.log(), pose.shift_x, pose.shift_y], dim=1), params)
    close(pose.scale_x, pose.scale_y)
    close(pose.shear, torch.zeros(1, dtype=torch.float64))


@many
@given(params_of("projective"))
def test_projective_pose_is_the_maps_behaviour_at_the_centre(params):
    theta = FAMILIES["projective"].theta(params)
    matrix, step = oracle_matrix("projective", params[0]), 1e-6
    right, left, down, up, centre = apply_matrix(
        matrix, np.array([[step, 0], [-step, 0], [0, step], [0, -step], [0, 0]]))
    linear = np.c_[right - left, down - up] / (2 * step)
    *parts, shift_x, shift_y = (part.item() for part in decompose(theta))
    np.testing.assert_allclose(linear_part(*parts), linear, atol=1e-7)
    np.testing.assert_allclose([shift_x, shift_y], centre, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_and_its_projective_twin_have_the_same_pose(name):
    theta = FAMILIES[name].theta(random_params(name, seed=15))
    close(torch.stack(decompose(transforms.homogeneous(theta))), torch.stack(decompose(theta)))


# ---- the horizon -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@many
@given(data=st.data())
def test_projective_denominator_is_positive_for_any_finite_parameters(dtype, data):
    width = {torch.float32: 32, torch.float64: 64}[dtype]
    finite = st.floats(allow_nan=False, allow_infinity=False, width=width)
    params = torch.tensor([data.draw(st.lists(finite, min_size=8, max_size=8))], dtype=dtype)
    theta = FAMILIES["projective"].theta(params)
    corners = torch.tensor([[-1, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]], dtype=dtype)
    assert (corners @ theta[0, 2] >= 0.1 - 1e-6).all()


@many
@given(tilts=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False, width=32)] * 2))
def test_any_tilt_gives_a_finite_grid_that_does_not_turn_inside_out(tilts):
    grid = FAMILIES["projective"].grid(torch.tensor([[1.0, 0, 0, 0, 1, 0, *tilts]]), 16)[0]
    assert grid.isfinite().all()
    assert (grid[:, 1:, 0] > grid[:, :-1, 0]).all()  # left stays left of right
    assert (grid[1:, :, 1] > grid[:-1, :, 1]).all()  # and above above


def test_points_beyond_the_horizon_are_read_far_outside():
    # the denominator 1 - 2 x is negative for x > 0.5: plain division would show the picture again, mirrored
    theta = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-2, 0, 1]]])
    grid = FAMILIES["projective"].grid_of(theta, 32)[0]
    assert grid.isfinite().all()
    assert (grid[:, 24:, 0] > 100).all()


# ---- refusals, precision, caches ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_a_wrong_shape_are_refused_by_name(name):
    count = FAMILIES[name].num_params
    for shape in [(2, count + 1), (2, count - 1), (count,), (2, count, 1), (2, 1, count), ()]:
        for call in (FAMILIES[name].theta, lambda params: FAMILIES[name].grid(params, 8)):
            with pytest.raises(ValueError, match=name):
                call(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 3, 2), (1, 4, 4), (1, 6)])
def test_a_theta_that_is_no_matrix_of_ours_is_refused(shape):
    with pytest.raises(ValueError, match="theta"):
        transforms.homogeneous(torch.zeros(shape))


def clear_caches():
    for cached in (transforms._output_points, transforms.control_points, transforms._tps_weights):
        cached.cache_clear()


@pytest.fixture
def empty_caches():
    """What the test caches under odd conditions is gone afterwards, too."""
    clear_caches()
    yield
    clear_caches()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cached_in_inference_mode_serves_training(name, empty_caches):
    params = random_params(name, seed=16, dtype=torch.float32)
    with torch.inference_mode():
        inferred = FAMILIES[name].grid(params, 8)
    params.requires_grad_()
    trained = FAMILIES[name].grid(params, 8)
    trained.square().sum().backward()
    assert torch.equal(trained, inferred)
    assert (params.grad != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_grid_under_autocast_is_the_plain_grid(name, empty_caches):
    """A float32 island, also where it is the first to fill the caches."""
    params = random_params(name, seed=17, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = FAMILIES[name].grid(params, 32)
    assert under_autocast.dtype == torch.float32
    clear_caches()
    assert torch.equal(under_autocast, FAMILIES[name].grid(params, 32))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cached_under_autocast_is_as_fine_as_ever(name, empty_caches):
    """Whoever calls `grid` right under autocast must not spoil the cached points for all later calls."""
    params = random_params(name, seed=18, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        FAMILIES[name].grid(params, 32)
    later = FAMILIES[name].grid(params, 32)
    assert later.dtype == torch.float32
    assert (later - FAMILIES[name].grid(params.double(), 32)).abs().max() < 1e-5
