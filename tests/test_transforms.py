"""Transformer families against scipy and numpy, which know nothing of grids and grid_sample."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import RBFInterpolator

from stn_cifar import matrices, transforms
from stn_cifar.matrices import compose, decompose, homogeneous, inverse
from stn_cifar.sampler import PADDING_MODES, sample
from stn_cifar.transforms import FAMILIES

MATRIX = [name for name, family in FAMILIES.items() if family.is_matrix]
AFFINE = [name for name in MATRIX if name != "projective"]
# what scipy calls them: an image ends half a pixel outside the centres of its outermost pixels
SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest", "reflection": "reflect"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
DTYPES = list(TOLERANCE)
few, some = settings(max_examples=25), settings(max_examples=50)

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
    reach = torch.tensor(REACH[name], dtype=torch.float64)
    offset = 2 * torch.rand(batch, len(reach), generator=rng(seed), dtype=torch.float64) - 1
    return (identity(name, batch) + reach * offset).to(dtype)


def random_theta(name, seed, batch=3):
    return FAMILIES[name].theta(random_params(name, seed, batch))


@st.composite
def params_of(draw, name):
    """Hypothesis' choice of parameters (1, P) within REACH of the identity."""
    offsets = [draw(st.floats(-reach, reach)) for reach in REACH[name]]
    return identity(name) + torch.tensor([offsets], dtype=torch.float64)


@st.composite
def theta_of(draw, names=tuple(MATRIX)):
    name = draw(st.sampled_from(names))
    return FAMILIES[name].theta(draw(params_of(name)))


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---- the oracles ---------------------------------------------------------------------------------


def oracle_matrix(name, params):
    """The (3, 3) matrix from output to input coordinates, put together from shift, turn, zoom."""
    p = np.asarray(params, dtype=np.float64)

    def shift(tx, ty):
        return np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])

    def turn(angle):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])

    def zoom(log_scale):
        return np.diag([np.exp(log_scale), np.exp(log_scale), 1])

    return {
        "translation": lambda: shift(*p),
        "rotation": lambda: turn(p[0]),
        "attention": lambda: shift(p[1], p[2]) @ zoom(p[0]),
        "similarity": lambda: shift(p[2], p[3]) @ turn(p[0]) @ zoom(p[1]),
        "affine": lambda: np.array([p[:3], p[3:], [0, 0, 1]]),
        "projective": lambda: np.array([p[:3], p[3:6], [*(0.45 * np.tanh(p[6:])), 1]]),
    }[name]()


def pixels_from_coordinates(height, width):
    """The matrix from (x, y, 1) to (row, column, 1); -1 and 1 are the image's outer edges."""
    return np.array([[0, height / 2, (height - 1) / 2], [width / 2, 0, (width - 1) / 2], [0, 0, 1]])


def output_centres(height, width):
    """Centres (x, y) of the output's pixels, (H*W, 2)."""
    y, x = ((np.arange(count) + 0.5) / count * 2 - 1 for count in (height, width))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def apply_matrix(matrix, points):
    """A (3, 3) or (2, 3) matrix on points (N, 2)."""
    image = np.c_[points, np.ones(len(points))] @ np.asarray(matrix).T
    return image[:, :2] / image[:, 2:] if image.shape[1] == 3 else image


def control_points(side):
    """side x side points (x, y), from corner to corner, row by row."""
    axis = np.linspace(-1, 1, side)
    return np.array([(x, y) for y in axis for x in axis])


def bookstein(control, values, points):
    """Closed form of the thin plate spline (Bookstein 1989) from `values` (K, 2) at `control`."""

    def kernel(a, b):
        r = np.linalg.norm(a[:, None] - b[None], axis=-1)
        return r**2 * np.log(np.where(r > 0, r, 1))

    affine, plain = (np.c_[np.ones(len(p)), p] for p in (control, points))
    system = np.block([[kernel(control, control), affine], [affine.T, np.zeros((3, 3))]])
    solution = np.linalg.solve(system, np.r_[values, np.zeros((3, 2))])
    return kernel(points, control) @ solution[:-3] + plain @ solution[-3:]


def oracle_points(name, params, height, width):
    """Where the output's pixels are read, (H*W, 2) in (x, y)."""
    centres = output_centres(height, width)
    if name == "tps":
        control = control_points(4)
        return bookstein(control, control + np.asarray(params).reshape(-1, 2), centres)
    return apply_matrix(oracle_matrix(name, params), centres)


# ---- the warp, from parameters to pixels ---------------------------------------------------------

# neither square nor of one size: a swap of x and y, or of input and output size, cannot hide
INPUT, OUTPUT = (20, 27), (23, 18)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("name", AFFINE)
def test_affine_families_warp_like_scipy_affine_transform(name, padding, dtype):
    images = torch.rand(3, 2, *INPUT, generator=rng(1), dtype=torch.float64).to(dtype)
    params = random_params(name, seed=2, dtype=dtype)
    warped = sample(images, FAMILIES[name].grid(params, OUTPUT), padding)
    assert warped.dtype == dtype
    for i in range(3):
        matrix = (pixels_from_coordinates(*INPUT) @ oracle_matrix(name, params[i])
                  @ np.linalg.inv(pixels_from_coordinates(*OUTPUT)))
        for image, found in zip(images[i].double().numpy(), warped[i], strict=True):
            expected = ndimage.affine_transform(image, matrix[:2, :2], matrix[:2, 2], OUTPUT,
                                                order=1, mode=SCIPY_MODE[padding])
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", FAMILIES)
@few
@given(data=st.data())
def test_any_parameters_warp_like_scipy_map_coordinates(name, data):
    params, dtype = data.draw(params_of(name)), data.draw(st.sampled_from(DTYPES))
    params, padding = params.to(dtype), data.draw(st.sampled_from(PADDING_MODES))
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    image = torch.rand(1, 1, *INPUT, generator=rng(5), dtype=torch.float64)
    warped = sample(image.to(dtype), FAMILIES[name].grid(params, size), padding)
    points = oracle_points(name, params[0].numpy(), *size)
    places = apply_matrix(pixels_from_coordinates(*INPUT), points).T
    expected = ndimage.map_coordinates(image[0, 0].numpy(), places, order=1,
                                       mode=SCIPY_MODE[padding]).reshape(size)
    np.testing.assert_allclose(warped[0, 0], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("side", [3, 4, 6])
def test_thin_plate_spline_equals_scipys_for_any_number_of_control_points(side):
    control = control_points(side)
    theta = torch.from_numpy(control) + 0.3 * torch.randn(
        2, side**2, 2, generator=rng(6), dtype=torch.float64)
    for dtype, tolerance in {torch.float32: 1e-5, torch.float64: 1e-9}.items():
        grid = FAMILIES["tps"].grid_of(theta.to(dtype), OUTPUT)
        for moved, found in zip(theta.numpy(), grid, strict=True):
            # r^2 log r here, r^2 log r^2 there: a factor of two that the solved weights absorb
            spline = RBFInterpolator(control, moved, kernel="thin_plate_spline", degree=1)
            np.testing.assert_allclose(found.reshape(-1, 2), spline(output_centres(*OUTPUT)),
                                       rtol=0, atol=tolerance)


@few
@given(theta=theta_of(tuple(AFFINE)))
def test_thin_plate_spline_with_affinely_moved_control_points_is_that_affine_map(theta):
    moved = torch.from_numpy(apply_matrix(theta[0], control_points(4)))[None]
    close(FAMILIES["tps"].grid_of(moved, OUTPUT), FAMILIES["affine"].grid_of(theta, OUTPUT))


@pytest.mark.parametrize("name", MATRIX)
def test_apply_sends_any_points_where_the_matrix_does(name):
    theta, points = random_theta(name, 19), output_centres(*OUTPUT)
    found = matrices.apply(theta, torch.from_numpy(points).reshape(1, *OUTPUT, 2))
    for moved, matrix in zip(found, theta, strict=True):
        np.testing.assert_allclose(moved.reshape(-1, 2), apply_matrix(matrix, points), atol=1e-12)
    close(found, FAMILIES[name].grid_of(theta, OUTPUT))


# ---- the identity --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", FAMILIES)
def test_identity_parameters_give_the_grid_of_pixel_centres_and_return_the_image(name, dtype,
                                                                                tolerance):
    family = FAMILIES[name]
    assert family.identity().shape == (family.num_params,)
    assert family.identity().dtype == torch.float32
    for size in (28, 32, (33, 96)):
        grid = family.grid(identity(name, 2, dtype), size)
        height, width = grid.shape[1:3]
        centres = torch.from_numpy(output_centres(height, width)).reshape(1, height, width, 2)
        torch.testing.assert_close(grid.double(), centres.expand(2, -1, -1, -1), rtol=0,
                                   atol=tolerance)
        assert torch.equal(grid, transforms.identity_grid(grid).expand_as(grid))  # to the last bit
        # black and white noise: a shift shows in full, in both directions
        images = torch.rand(2, 3, height, width, generator=rng(8), dtype=dtype).round()
        for padding in PADDING_MODES:
            torch.testing.assert_close(sample(images, grid, padding), images, rtol=0,
                                       atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_int_is_a_square_size(name):
    params = random_params(name, seed=10)
    assert torch.equal(FAMILIES[name].grid(params, 7), FAMILIES[name].grid(params, (7, 7)))


# ---- direction, where an eye can check it --------------------------------------------------------


def picture(*rows):
    """A picture (1, 1, H, W) from rows of text: '#' is 1, '+' is one half, '.' is 0."""
    values = {"#": 1.0, "+": 0.5, ".": 0.0}
    return torch.tensor([[[[values[c] for c in row] for row in rows]]], dtype=torch.float64)


def warp(name, params, image, size=None):
    params = torch.tensor([params], dtype=torch.float64)
    return sample(image, FAMILIES[name].grid(params, size or image.shape[-2:]))


def shows(warped, *rows):
    torch.testing.assert_close(warped, picture(*rows), rtol=0, atol=1e-12)


DOT = picture("....", "....", ".#..", "....")


@pytest.mark.parametrize(("name", "place"), [
    ("translation", 0), ("attention", 1), ("similarity", 2), ("affine", (2, 5)),
    ("projective", (2, 5)), ("tps", None),
])
def test_a_positive_shift_moves_the_content_left_and_up(name, place):
    """Half a half-width is one pixel of four."""
    x, y = identity(name)[0], identity(name)[0]
    if place is None:  # all control points together
        x[0::2] = y[1::2] = 0.5
    else:
        at_x, at_y = place if isinstance(place, tuple) else (place, place + 1)
        x[at_x] = y[at_y] = 0.5
    shows(warp(name, x.tolist(), DOT), "....", "....", "#...", "....")
    shows(warp(name, y.tolist(), DOT), "....", ".#..", "....", "....")


def test_a_shift_by_half_a_pixel_spreads_a_pixel_evenly_over_two():
    shows(warp("translation", [-0.25, 0], DOT), "....", "....", ".++.", "....")


@pytest.mark.parametrize(("name", "params"), [
    ("rotation", [math.pi / 2]), ("similarity", [math.pi / 2, 0, 0, 0]),
    ("affine", [0, -1, 0, 1, 0, 0]),
])
def test_a_positive_quarter_turn_turns_the_content_counter_clockwise(name, params):
    flag = picture("##..", "#...", "#...", "#...")
    shows(warp(name, params, flag), "....", "....", "#...", "####")
    close(warp(name, params, flag), torch.rot90(flag, 1, (2, 3)))


@pytest.mark.parametrize("degrees", [-150, -20, 45, 120])
def test_a_spot_on_the_right_turns_to_the_given_angle_on_the_screen(degrees):
    y, x = np.mgrid[-1:1:33j, -1:1:33j]
    spot = torch.from_numpy(np.exp(-((x - 0.5) ** 2 + y**2) / 0.02))[None, None]
    turned = warp("rotation", [math.radians(degrees)], spot)[0, 0].numpy()
    seen = math.degrees(math.atan2(-(turned * y).sum(), (turned * x).sum()))  # y points down
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
    close(warp("attention", [math.log(0.5), 0.5, -0.5], image, size=16), image[:, :, :16, 16:])


def test_positive_tilt_in_x_enlarges_the_right_side():
    # the denominator grows to the right: neighbours there read inputs that lie closer together
    grid = FAMILIES["projective"].grid(torch.tensor([[1.0, 0, 0, 0, 1, 0, 0.5, 0]]), 32)
    assert (grid[0, 16, :, 0].diff().diff() < 0).all()


# ---- there and back again ------------------------------------------------------------------------


def smooth_picture(size):
    """A wave of two cycles a side, values in [0, 1]: bilinear reading is off by little."""
    axis = torch.linspace(0, 4 * math.pi, size, dtype=torch.float64)
    return (0.5 + 0.25 * axis.sin()[:, None] + 0.25 * axis.cos()[None])[None, None]


def agree(one, other, tolerance, *grids):
    """Do two pictures agree, where all `grids` lead through the inside of the picture only?"""
    inside = torch.stack([(grid[0].abs() < 0.95).all(dim=-1) for grid in grids]).all(dim=0)
    assert inside.float().mean() > 0.1
    return (one - other)[0, 0][inside].abs().max() < tolerance


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MATRIX)
def test_a_warp_and_its_inverse_return_the_picture(name, seed):
    size, image = 96, smooth_picture(96)
    theta = random_theta(name, seed, batch=1)
    back = FAMILIES[name].grid_of(inverse(theta), size)
    # a coarse picture between would lose detail where the warp shrinks: four times the pixels
    there = sample(image, FAMILIES[name].grid_of(theta, 4 * size))
    centres = transforms.identity_grid(back)
    assert agree(sample(there, back), image, 0.01, back, centres)
    # the same warp twice, instead of there and back, is far off
    assert not agree(sample(there, FAMILIES[name].grid_of(theta, size)), image, 0.1, back, centres)


@pytest.mark.parametrize(("outer", "inner"), [
    ("rotation", "translation"), ("affine", "similarity"), ("projective", "rotation")])
def test_sampling_in_sequence_equals_sampling_once_by_the_composition(outer, inner):
    size, image = 96, smooth_picture(96)
    family = FAMILIES["projective" if outer == "projective" else "affine"]
    first, second = (random_theta(name, 13, batch=1) for name in (outer, inner))
    last = FAMILIES[inner].grid_of(second, size)
    in_sequence = sample(sample(image, FAMILIES[outer].grid_of(first, 4 * size)), last)
    once, wrong = (family.grid_of(compose(*pair), size)
                   for pair in ((first, second), (second, first)))
    assert agree(in_sequence, sample(image, once), 0.01, last, once)
    assert not agree(in_sequence, sample(image, wrong), 0.1, last, once)


# ---- gradients -----------------------------------------------------------------------------------


def params_off_the_kinks(name, size, image_size):
    """Random parameters whose grid keeps clear of pixel centres: bilinear reading has kinks there.

    The kinks of border (clamping) and reflection lie there too, or where the picture is constant.
    """
    for seed in range(100):
        params = random_params(name, seed, batch=2)
        grid = FAMILIES[name].grid(params, size)
        pixels = ((grid + 1) * torch.tensor(image_size[::-1]) - 1) / 2
        if (pixels - pixels.round()).abs().min() > 1e-3:
            return params
    raise AssertionError("no parameters clear of the kinks")


@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_from_pixels_to_parameters_are_exact(name, padding):
    image_size, size = (9, 10), (4, 3)
    y, x = torch.meshgrid(torch.linspace(0, 3, 9), torch.linspace(0, 4, 10), indexing="ij")
    images = torch.stack([(x + y).sin(), (x - 2 * y).cos()])[:, None].double().requires_grad_()
    params = params_off_the_kinks(name, size, image_size).requires_grad_()

    def pixels(params, images):
        return sample(images, FAMILIES[name].grid(params, size), padding)

    assert torch.autograd.gradcheck(pixels, (params, images), eps=1e-6, atol=1e-6)
    gradient, = torch.autograd.grad(pixels(params, images).square().sum(), params)
    assert gradient.abs().min() > 1e-5  # every parameter of every image learns


@pytest.mark.parametrize("name", MATRIX)
def test_gradients_through_compose_inverse_and_decompose_are_exact(name):
    def poses(params):
        theta = FAMILIES[name].theta(params)
        return torch.stack([*decompose(compose(theta, theta)), *decompose(inverse(theta))])

    assert torch.autograd.gradcheck(poses, random_params(name, 12, batch=2).requires_grad_())


# ---- the laws of composition ---------------------------------------------------------------------


@some
@given(theta_of(), theta_of(), theta_of())
def test_compose_is_associative(a, b, c):
    close(compose(compose(a, b), c), compose(a, compose(b, c)))


@some
@given(theta_of())
def test_inverse_undoes_theta_on_both_sides(theta):
    rows = theta.shape[-2]
    assert inverse(theta).shape == theta.shape
    for composed in (compose(theta, inverse(theta)), compose(inverse(theta), theta)):
        close(composed, torch.eye(3, dtype=torch.float64)[None, :rows])
    close(inverse(inverse(theta)), theta)


@some
@given(theta_of(), theta_of())
def test_inverse_of_a_composition_runs_backwards(outer, inner):
    close(inverse(compose(outer, inner)), compose(inverse(inner), inverse(outer)))


@some
@given(theta_of(), theta_of())
def test_compose_is_outer_of_inner_at_every_point(outer, inner):
    points, composed = output_centres(5, 7), compose(outer, inner)
    expected = apply_matrix(outer[0], apply_matrix(inner[0], points))
    grid = FAMILIES["projective" if composed.shape[-2] == 3 else "affine"].grid_of(composed, (5, 7))
    np.testing.assert_allclose(grid[0].reshape(-1, 2), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outer", MATRIX)
@pytest.mark.parametrize("inner", MATRIX)
def test_compose_keeps_affine_maps_affine_and_normalizes_projective_ones(outer, inner):
    composed = compose(random_theta(outer, 14), random_theta(inner, 14))
    if "projective" in (outer, inner):
        assert composed.shape == (3, 3, 3) and (composed[:, 2, 2] == 1).all()
    else:
        assert composed.shape == (3, 2, 3)


def test_what_has_no_inverse_says_so():
    with pytest.raises(torch.linalg.LinAlgError):
        inverse(torch.zeros(1, 2, 3))
    spline = FAMILIES["tps"].theta(identity("tps"))
    for call in (lambda: compose(spline, spline), lambda: inverse(spline)):
        with pytest.raises(ValueError, match="no matrix family"):
            call()


# ---- theta taken apart ---------------------------------------------------------------------------


def linear_part(angle, scale_x, scale_y, shear):
    """The (2, 2) matrix that `Pose` says it took apart."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ [[scale_x, scale_x * shear], [0, scale_y]]


def parts_of(theta):
    return [part.item() for part in decompose(theta)]


@given(angle=st.floats(-3.1, 3.1), scale_x=st.floats(0.1, 3), shear=st.floats(-2, 2),
       scale_y=st.floats(0.1, 3) | st.floats(-3, -0.1),
       shift=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_decompose_reads_back_what_theta_was_built_of(angle, scale_x, scale_y, shear, shift):
    linear = linear_part(angle, scale_x, scale_y, shear)
    theta = torch.from_numpy(np.c_[linear, shift])[None]
    np.testing.assert_allclose(parts_of(theta), [angle, scale_x, scale_y, shear, *shift],
                               rtol=1e-8, atol=1e-8)
    assert decompose(theta).scale.item() == pytest.approx(abs(np.linalg.det(linear)) ** 0.5)


@given(entries=st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_decomposed_parts_rebuild_any_regular_theta(entries):
    theta = np.array(entries).reshape(2, 3)
    if abs(np.linalg.det(theta[:, :2])) < 1e-3:
        theta[:, :2] += np.eye(2) * 4.5  # dominant diagonal: regular
    *parts, shift_x, shift_y = parts_of(torch.from_numpy(theta)[None])
    rebuilt = np.c_[linear_part(*parts), [shift_x, shift_y]]
    np.testing.assert_allclose(rebuilt, theta, rtol=1e-9, atol=1e-9)
    assert parts[1] > 0  # scale_x: a mirror image shows in scale_y


@given(params_of("similarity"))
def test_similarity_parameters_are_read_back(params):
    pose = decompose(FAMILIES["similarity"].theta(params))
    close(torch.stack([pose.angle, pose.scale.log(), pose.shift_x, pose.shift_y], dim=1), params)
    close(pose.scale_x, pose.scale_y)
    close(pose.shear, torch.zeros(1, dtype=torch.float64))


@some
@given(params_of("projective"))
def test_projective_pose_is_the_maps_behaviour_at_the_centre(params):
    matrix, step = oracle_matrix("projective", params[0]), 1e-6
    around = step * np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    right, left, down, up, centre = apply_matrix(matrix, around)
    linear = np.c_[right - left, down - up] / (2 * step)
    *parts, shift_x, shift_y = parts_of(FAMILIES["projective"].theta(params))
    np.testing.assert_allclose(linear_part(*parts), linear, atol=1e-7)
    np.testing.assert_allclose([shift_x, shift_y], centre, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_and_its_projective_twin_have_the_same_pose(name):
    theta = random_theta(name, seed=15)
    close(torch.stack(decompose(homogeneous(theta))), torch.stack(decompose(theta)))


@some
@given(theta_of(tuple(AFFINE)))
def test_the_mean_square_radius_of_a_grid_grows_with_its_scales(theta):
    """A unit square scaled by A has the radius of the singular values of A: sum of squares."""
    grid = FAMILIES["affine"].grid_of(theta, 24)
    plain = transforms.mean_square_radius(transforms.identity_grid(grid))
    expected = plain / 2 * torch.linalg.svdvals(theta[:, :, :2]).square().sum(1)
    close(transforms.mean_square_radius(grid), expected)


# ---- the horizon ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_projective_denominator_is_positive_for_any_finite_parameters(dtype, data):
    finite = st.floats(allow_nan=False, allow_infinity=False, width=torch.finfo(dtype).bits)
    params = torch.tensor([data.draw(st.lists(finite, min_size=8, max_size=8))], dtype=dtype)
    theta = FAMILIES["projective"].theta(params)
    corners = torch.tensor([[-1, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]], dtype=dtype)
    assert (corners @ theta[0, 2] >= 0.1 - 1e-6).all()


@given(tilts=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False, width=32)] * 2))
def test_any_tilt_gives_a_finite_grid_that_does_not_turn_inside_out(tilts):
    grid = FAMILIES["projective"].grid(torch.tensor([[1.0, 0, 0, 0, 1, 0, *tilts]]), 16)[0]
    assert grid.isfinite().all()
    assert (grid[..., 0].diff(dim=1) > 0).all()  # left stays left of right
    assert (grid[..., 1].diff(dim=0) > 0).all()  # and above above


def test_points_beyond_the_horizon_are_read_far_outside():
    # 1 - 2 x is negative for x > 0.5: plain division would show the picture again, mirrored
    theta = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-2, 0, 1]]])
    grid = FAMILIES["projective"].grid_of(theta, 32)[0]
    assert grid.isfinite().all() and (grid[:, 24:, 0] > 100).all()


# ---- refusals, precision, kept constants ---------------------------------------------------------


def test_images_of_many_sizes_do_not_fill_the_memory():
    made = []

    @transforms.constant
    def numbers(count, device):
        made.append(count)
        return torch.zeros(count, device=device)

    for count in range(1, 200):
        assert numbers(count, "cpu") is numbers(count, "cpu")
    assert made == list(range(1, 200))
    numbers(199 - transforms.KEPT, "cpu")  # the oldest are made anew, the newest are kept
    numbers(199, "cpu")
    assert made[199:] == [199 - transforms.KEPT]


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_a_wrong_shape_are_refused_by_name(name):
    count = FAMILIES[name].num_params
    for shape in [(2, count + 1), (2, count - 1), (count,), (2, count, 1), (2, 1, count), ()]:
        for call in (FAMILIES[name].theta, lambda params: FAMILIES[name].grid(params, 8)):
            with pytest.raises(ValueError, match=f"^params: .*{name}"):
                call(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 3, 2), (1, 4, 4), (1, 6)])
def test_a_theta_that_is_no_matrix_of_ours_is_refused(shape):
    with pytest.raises(ValueError, match=r"^theta: "):
        homogeneous(torch.zeros(shape))


def unseen(name, number):
    """(theta, size) that no other test uses, so that nothing is kept for them yet."""
    if name != "tps":
        return random_theta(name, 16), (101, 2 + number)
    points = torch.from_numpy(control_points(6 + number))
    noise = torch.rand(3, len(points), 2, generator=rng(16), dtype=torch.float64)
    return points + 0.1 * noise, (101, 2 + number)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_kept_in_inference_mode_serves_training(name):
    theta, size = unseen(name, 1)
    with torch.inference_mode():
        inferred = FAMILIES[name].grid_of(theta, size)
    theta.requires_grad_()
    assert torch.equal(FAMILIES[name].grid_of(theta, size), inferred)
    assert torch.autograd.gradcheck(lambda theta: FAMILIES[name].grid_of(theta, size), theta,
                                    fast_mode=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_under_autocast_grids_and_what_is_kept_for_them_are_as_fine_as_ever(name):
    theta, size = unseen(name, 2)
    with torch.autocast("cpu", torch.bfloat16):
        grid = FAMILIES[name].grid_of(theta.float(), size)
    assert grid.dtype == torch.float32
    assert torch.equal(grid, FAMILIES[name].grid_of(theta.float(), size))
    assert (grid - FAMILIES[name].grid_of(theta, size)).abs().max() < 1e-5
