"""Distortions against independent oracles (scipy, numpy); one seed, one pose; no frame tells it."""

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distorting import distort
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import kstest

from stn_cifar import Config, distortions, load_data
from stn_cifar.data import suites
from stn_cifar.data.cifar10 import DataError
from stn_cifar.data.suites import suite, suite_file
from stn_cifar.distortions import DISTORTIONS, apply, sample_params
from stn_cifar.matrices import decompose, inverse
from stn_cifar.sampler import sample
from stn_cifar.transforms import FAMILIES, MAX_TILT, control_points

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = list(DISTORTIONS)
VARIED = [name for name in NAMES if name != "disc"]  # which turns by 0 degrees, always
PLAIN = [name for name in NAMES if name != "clutter"]
MATRIX = [name for name in PLAIN if name != "elastic"]
DISC = [name for name in NAMES if DISTORTIONS[name].disc]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("fields", "message"), [
    (dict(ranges={"angel": (-90, 90)}), "ranges: 'angel' is nothing that family='rotation' can be"),
    (dict(ranges={"tilt_x": (0, 1)}), "ranges: 'tilt_x' is nothing"),
    (dict(family="tps"), "ranges: 'angle' is nothing that family='tps' .* one of bend"),
    (dict(family="rotate"), "family: 'rotate' is unknown; must be one of translation, rotation"),
    (dict(interpolation="cubic"), "interpolation: 'cubic' is unknown; must be one of bilinear"),
    (dict(ranges={"scale": (0, 2)}), "ranges: scale from 0 to 2; .* finite, above 0"),
    (dict(ranges={"angle": (90, -90)}), "ranges: angle from 90 to -90"),
    (dict(ranges={"angle": (0, np.nan)}), "ranges: angle from 0 to nan; must be")])
def test_a_row_that_would_do_something_else_is_refused(fields, message):
    assert replace(DISTORTIONS["rotation"], ranges={"angle": (-90, 90)})  # a good one is taken
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(DISTORTIONS["rotation"], **fields)


def images_of(count=6, size=32, blur=1.5, channels=3):
    """Smooth random images (count, channels, size, size), uint8, over the whole range of levels."""
    noise = np.random.default_rng(0).normal(size=(count, channels, size, size))
    smooth = gaussian_filter(noise, (0, 0, blur, blur), mode="reflect")
    low, high = smooth.min((2, 3), keepdims=True), smooth.max((2, 3), keepdims=True)
    return torch.from_numpy(np.round(255 * (smooth - low) / (high - low)).astype(np.uint8))


def centres(size):
    """x and y of the pixels' centres, each (size, size)."""
    axis = (2 * np.arange(size) + 1) / size - 1
    return np.meshgrid(axis, axis)


def inside_disc(size):
    return torch.from_numpy(np.hypot(*centres(size)) <= 1 - 1 / size + 1e-9)


def keys_weights(t):
    """Cubic convolution's weights of the taps -1, 0, 1, 2 at fraction t, a = -0.75 (Keys 1981)."""
    def near(d):
        return 1.25 * d**3 - 2.25 * d**2 + 1

    def far(d):
        return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)

    return far(1 + t), near(t), near(1 - t), far(2 - t)


def bicubic(channel, rows, columns):
    pad = 4  # coordinates lie within the picture, the taps up to two pixels outside
    padded = np.pad(channel, pad, mode="symmetric")
    r, c = np.floor(rows).astype(int), np.floor(columns).astype(int)
    weights = keys_weights(rows - r), keys_weights(columns - c)
    return sum(wr * wc * padded[r + pad - 1 + i, c + pad - 1 + j]
               for i, wr in enumerate(weights[0]) for j, wc in enumerate(weights[1]))


def bilinear(channel, rows, columns):
    return map_coordinates(channel, [rows, columns], order=1, mode="reflect")


def by_hand(image, theta, row):
    """What `row` makes of an uint8 `image` (C, S, S) under `theta`: float64, numpy and scipy."""
    image, theta = image.numpy() / 255, theta.double().numpy()
    size, out, k = image.shape[-1], round(image.shape[-1] * row.canvas), row.supersample
    x, y = centres(out * k)
    if row.family == "tps":
        spline = RBFInterpolator(control_points(4).numpy(), theta, kernel="thin_plate_spline",
                                 degree=1)
        u, v = spline(np.stack([x.ravel(), y.ravel()], 1)).T.reshape(2, *x.shape)
    else:
        u, v, *w = np.einsum("ij,jhw->ihw", theta, np.stack([x, y, np.ones_like(x)]))
        u, v = (u / w[0], v / w[0]) if w else (u, v)
    if row.disc:
        r, direction = np.hypot(u, v), np.arctan2(v, u)
        radius = np.where(r > 1, np.maximum(2 - r, 0), r)
        u, v = radius * np.cos(direction), radius * np.sin(direction)
    else:  # mirrored at the sides: a zigzag between -1 and 1
        u, v = (np.arcsin(np.sin(a * np.pi / 2)) * 2 / np.pi for a in (u, v))
    read = dict(bicubic=bicubic, bilinear=bilinear)[row.interpolation]
    warped = np.stack([read(channel, *((a + 1) * size / 2 - 0.5 for a in (v, u)))
                       for channel in image])
    warped = warped.reshape(len(image), out, k, out, k).mean((2, 4)).clip(0, 1)
    if row.disc:
        colour = (125, 123, 114) if len(image) == 3 else (128,) * len(image)
        colour = np.array(colour).reshape(-1, 1, 1) / 255
        warped = np.where(inside_disc(out).numpy(), warped, colour)
    return warped


def all_by_hand(images, theta, row):
    return np.stack([by_hand(image, t, row) for image, t in zip(images, theta, strict=True)])


# ---- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", PLAIN)
def test_pixels_match_an_independent_oracle(name, interpolation):
    images, row = images_of(3, blur=0.7), replace(DISTORTIONS[name], interpolation=interpolation)
    warped, theta = distort(images, row, generator(1))
    np.testing.assert_allclose(warped.numpy(), all_by_hand(images, theta, row), atol=2e-4)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (33, 3), (24, 2)])
@pytest.mark.parametrize("name", ["rotation", "rts", "translation"])
def test_other_sizes_and_channels(name, size, channels):
    images = images_of(2, size=size, channels=channels)
    warped, theta = distort(images, name, generator(2))
    expected = all_by_hand(images, theta, DISTORTIONS[name])
    np.testing.assert_allclose(warped.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_upright_pose_leaves_the_image_as_it_is(name):
    row, images = replace(DISTORTIONS[name], supersample=1), images_of()
    upright = {key: distortions.UPRIGHT[key] for key in row.ranges}
    warped, _ = distort(images, row, generator(), **upright)
    edge = (row.canvas_size(32) - 32) // 2
    error = (warped[..., edge:edge + 32, edge:edge + 32] - images / 255).abs()
    assert error[..., inside_disc(32) if row.disc else slice(None)].max() < 1e-5


def test_a_quarter_turn_is_counter_clockwise():
    images, disc = images_of(), inside_disc(32)
    turned, _ = distort(images, "rotation", generator(), angle=90)
    assert (turned - torch.rot90(images, 1, (2, 3)) / 255)[..., disc].abs().max() < 1e-4
    # the negative control
    assert (turned - torch.rot90(images, -1, (2, 3)) / 255)[..., disc].abs().mean() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_uint8_and_float_agree_and_lie_in_range(name):
    images, params = images_of(blur=0.3), sample_params(name, 6, generator())
    warped, side = apply(images, params), DISTORTIONS[name].canvas_size(32)
    assert warped.shape == (6, 3, side, side) and warped.dtype == torch.float32
    assert warped.min() >= 0 and warped.max() <= 1
    torch.testing.assert_close(apply(images.double() / 255, params), warped, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_inference_mode_change_nothing(name):
    images, params = images_of(), sample_params(name, 6, generator())
    distortions._disc.cache_clear()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = apply(images, params).clone()
    torch.testing.assert_close(inside, apply(images, params), rtol=0, atol=1e-6)


# ---- theta is what was applied -------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(name for name in MATRIX if name in VARIED), "clutter"])
def test_the_inverse_of_theta_undoes_it(name):
    """Where a pixel and its place on the canvas are well inside, the original comes back."""
    row, images = DISTORTIONS[name], images_of(16, blur=2.5)
    warped, theta = distort(images, name, generator(3))

    def error(predicted):
        grid = FAMILIES[row.family].grid_of(predicted, 32)
        back = sample(warped, grid, "border", "bicubic")
        seen = (grid.norm(dim=-1) if row.disc else grid.abs().amax(-1)) < 0.88
        known = seen & torch.from_numpy(np.hypot(*centres(32)) < 0.85)
        assert known.float().mean() > 0.3  # not vacuous
        return ((back - images / 255).abs().mean(1) * known).sum() / known.sum()

    assert error(inverse(theta)) < 0.02
    assert error(theta) > 0.08  # the negative control: the wrong way round


def test_elastic_moves_the_control_points_to_theta():
    displacement = sample_params("elastic", 50, generator(), bend=0.25).theta - control_points(4)
    assert 0.2 < displacement.abs().max() <= 0.25
    assert abs(displacement.mean()) < 0.02


@pytest.mark.parametrize("name", MATRIX)
def test_the_named_family_can_express_the_inverse(name):
    family, theta = DISTORTIONS[name].family, inverse(sample_params(name, 500, generator()).theta)
    if family == "projective":
        assert theta[:, 2, :2].abs().max() < MAX_TILT
        return
    pose = decompose(theta)
    stretch = pose.scale_x - pose.scale_y
    none = dict(rotation=(pose.scale - 1, stretch, pose.shear, pose.shift_x, pose.shift_y),
                attention=(pose.angle, stretch, pose.shear), similarity=(stretch, pose.shear),
                affine=())[family]
    assert all(value.abs().max() < 1e-5 for value in none)


# ---- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIED)
def test_a_seed_fixes_the_poses_whatever_the_global_random_state(name):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, again, other = (distort(images_of(), name, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert (first[0] - other[0]).abs().mean() > 0.005 and not torch.allclose(first[1], other[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_sample_is_that_part(name):
    images, index = images_of(20), torch.tensor([3, 19, 0, 7])
    params = sample_params(name, 20, generator())
    some, short = params.to("cpu")[index], sample_params(name, 5, generator())
    assert len(params) == 20 and len(some) == 4 and torch.equal(some.theta, params.theta[index])
    assert torch.equal(params[4:9].patches, params.patches[4:9])
    # a longer sample starts with a shorter one's
    assert torch.equal(short.theta, params.theta[:5])
    assert torch.equal(short.patches, params.patches[:5])
    assert len(sample_params(name, 0, generator())) == 0
    if not DISTORTIONS[name].clutter:  # whose patches come from the batch
        whole = apply(images, params)
        torch.testing.assert_close(apply(images[index], some), whole[index], rtol=0, atol=1e-5)


def quantities(name, count=4000):
    """Each quantity of the row's table, taken out of theta again."""
    row, theta = DISTORTIONS[name], sample_params(name, count, generator(5)).theta
    flat = torch.zeros(count, 2)
    tilt = theta[:, 2, :2] / row.canvas if row.family == "projective" else flat
    pose = decompose(theta[:, :2])
    return dict(angle=pose.angle.rad2deg(), scale=pose.scale / row.canvas,
                aspect=pose.scale_x / pose.scale_y, shear=pose.shear, shift_x=pose.shift_x,
                shift_y=pose.shift_y, tilt_x=tilt[:, 0], tilt_y=tilt[:, 1])


@pytest.mark.parametrize("name", [*(name for name in MATRIX if name in VARIED), "clutter"])
def test_ranges_are_kept_and_filled_evenly(name):
    ranges = DISTORTIONS[name].ranges
    for key, value in quantities(name).items():
        if key not in ranges:
            assert (value - distortions.UPRIGHT[key]).abs().max() < 1e-5, key
            continue
        value, (low, high) = value.double(), ranges[key]
        assert low - 1e-4 <= value.min() and value.max() <= high + 1e-4, key
        if key in ("scale", "aspect"):
            value, low, high = value.log(), np.log(low), np.log(high)
        assert kstest(((value - low) / (high - low)).numpy(), "uniform").pvalue > 0.003, key


def test_quantities_are_independent():
    values = [value for key, value in quantities("affine").items()
              if key in DISTORTIONS["affine"].ranges]
    assert (torch.corrcoef(torch.stack(values)) - torch.eye(len(values))).abs().max() < 0.06


def test_fixed_quantities_leave_the_others_as_sampled():
    free, fixed = (decompose(sample_params("rts", 40, generator(6), **given).theta)
                   for given in ({}, dict(angle=30, shift_x=torch.zeros(40))))
    torch.testing.assert_close(fixed.angle.rad2deg(), torch.full((40,), 30.0))
    assert torch.equal(fixed.shift_x, torch.zeros(40)) and torch.equal(fixed.shift_y, free.shift_y)
    torch.testing.assert_close(fixed.scale, free.scale)


# ---- what stands outside does not give the pose away ---------------------------------------------


@pytest.mark.parametrize("name", DISC)
def test_around_the_disc_all_images_are_alike(name):
    images, outside = images_of(16), ~inside_disc(32)
    around = distort(images, name, generator())[0][..., outside]
    expected = (torch.tensor([125.0, 123, 114]) / 255)[:, None]
    assert torch.equal(around, expected.expand_as(around))
    # the negative control: without the disc the corners tell images and poses apart
    bare = distort(images, replace(DISTORTIONS[name], disc=False), generator())[0][..., outside]
    assert bare.std(0).min() > 0.01


def test_a_rotation_shows_nothing_but_the_picture():
    """What lies outside the disc of the original has no influence on any rotation of it."""
    images, angle = images_of(), torch.tensor([0.0, 17, 45, 90, 133, -80])
    other = torch.where(~inside_disc(32), 255 - images, images)
    row = replace(DISTORTIONS["rotation"], interpolation="bilinear")
    there, here = (distort(x, row, generator(), angle=angle)[0] for x in (other, images))
    # bilinear reads up to a pixel and a half around
    core = torch.from_numpy(np.hypot(*centres(32)) < 1 - 4 / 32)
    assert torch.equal(there[..., core], here[..., core]) and not torch.equal(there, here)


def test_the_fill_tells_nothing_of_the_angle():
    """Concentric rings look the same at every angle, fill included; mirrored sides would not."""
    rings = torch.from_numpy(0.5 + 0.5 * np.cos(5 * np.hypot(*centres(32))))
    rings, angle = rings.expand(3, 1, 32, 32), torch.tensor([0.0, 20, 45])
    row = replace(DISTORTIONS["rts"], ranges={"angle": (0, 0), "scale": (1, 1)})

    def difference(row):
        shown = distort(rings, row, generator(), angle=angle, scale=1.4)[0]
        return (shown - shown[:1])[..., inside_disc(32)].abs().max()

    assert difference(row) < 0.03
    assert difference(replace(row, disc=False)) > 0.3  # the negative control


def test_translation_keeps_the_whole_picture_in_sight():
    images = images_of(2)
    corner, _ = distort(images, "translation", generator(), shift_x=0.5, shift_y=-0.5)
    # a positive shift moves it to the left
    assert (corner[..., 16:, :32] - images / 255).abs().max() < 1e-5


# ---- clutter -------------------------------------------------------------------------------------


def test_clutter_never_covers_the_picture_and_comes_from_others():
    levels = torch.arange(10, 250, 40, dtype=torch.uint8)  # six images, each of one level
    images = levels.view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    params = sample_params("clutter", 6, generator())
    shown = (apply(images, params) * 255).round()
    x, y = (torch.from_numpy(a).float() for a in centres(48))
    (shift_x, shift_y) = params.theta[:, :, 2].T[:, :, None, None]
    far = torch.maximum((1.5 * x + shift_x).abs(), (1.5 * y + shift_y).abs())
    for i, level in enumerate(levels.tolist()):
        assert (shown[i][:, far[i] < 1 - 1 / 32] == level).all()
        beyond = set(shown[i][:, far[i] > 1 + 1 / 32].unique().tolist())
        assert len(beyond) >= 3 and beyond <= set(levels.tolist()) - {level}


def test_clutter_is_cut_unscaled_from_an_image():
    """Every 8 x 8 patch of the canvas stands somewhere in another image, pixel by pixel."""
    images = images_of(3, blur=0.3)
    params = sample_params("clutter", 3, generator(), shift_x=0.5, shift_y=0.5)
    canvas = (apply(images, params)[0] * 255).round().to(torch.uint8)
    windows = images[1:].unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5)
    windows = windows.reshape(-1, 3, 8, 8)
    for at in (32, 40):  # the image itself stands in the upper left corner
        assert (windows == canvas[:, at:at + 8, at:at + 8]).flatten(1).all(1).any()
    assert apply(images[:1], params[:1]).isfinite().all()  # alone: cut from itself


# ---- the frozen suite ----------------------------------------------------------------------------


def test_disc_shows_the_picture_upright_in_the_disc_and_nothing_around_it():
    images = images_of(6)
    pictures, theta = suite(images, "disc")
    disc, colour = inside_disc(32), torch.tensor(distortions.OUTSIDE, dtype=torch.uint8)
    assert torch.equal(pictures[..., disc], images[..., disc])
    assert torch.equal(pictures[..., ~disc], colour[:, None].expand(6, 3, int((~disc).sum())))
    torch.testing.assert_close(theta, torch.eye(3)[:2].expand(6, 2, 3))
    # the negative control
    assert not torch.equal(suite(images, "rotation")[0][..., disc], images[..., disc])


@pytest.mark.parametrize("name, digest", [
    ("rotation", "6c0391921b33f5c2"),
    ("rts", "5d01004be76667b3"),
    ("clutter", "fba5e85b18dce2bc"),
    ("elastic", "dd8d747284fc6a29"),
    ("projective", "c62ce915df2915d6"),
])
def test_the_suites_pixels_are_the_same_on_every_machine(name, digest):
    """Computed in float64: no rounding of a processor's own comes through to 8 bits."""
    images = torch.arange(20 * 3 * 32 * 32).mul(2654435761).remainder(2**32).div(2**24)
    images = images.reshape(20, 3, 32, 32).to(torch.uint8)  # noise, the same everywhere
    pictures, _ = suite(images, name)
    assert hashlib.sha256(pictures.numpy().tobytes()).hexdigest()[:16] == digest


def test_readme_states_the_digest_of_rotated_cifar10():
    try:
        data = load_data(Config.preset("tutorial", dataset="cifar10", device="cpu",
                                       data_root=os.environ.get("STN_CIFAR_DATA", "nowhere")))
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: set STN_CIFAR_DATA to its folder ({error})")
    _, digest = suite_file(data.test.images, data.test.labels, "rotation")
    assert digest in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_suite_has_the_poses_it_always_had():
    """Stored numbers: a change here makes results measured before and after incomparable."""
    angles = decompose(suite(images_of(4), "rotation")[1]).angle.rad2deg()
    expected = torch.tensor([48.4139, 93.0448, 70.0361, -99.8411])
    torch.testing.assert_close(angles, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", PLAIN)
def test_the_suite_agrees_with_the_oracle_to_one_level(name):
    images = images_of(4, blur=0.7)
    pictures, theta = suite(images, name)
    expected = np.round(255 * all_by_hand(images, theta, DISTORTIONS[name]))
    assert pictures.dtype == torch.uint8 and len(theta) == 4
    assert np.abs(pictures.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["rts", "elastic", "clutter"])
def test_the_suite_depends_on_nothing_but_the_images(name, monkeypatch):
    images = images_of(9)
    torch.manual_seed(1)
    whole, theta = suite(images, name)
    torch.manual_seed(2)
    monkeypatch.setattr(suites, "CHUNK", 3)
    chunked, same = suite(images, name)
    assert torch.equal(theta, same)
    if name != "clutter":  # cut from within the chunk
        assert (whole.int() - chunked.int()).abs().max() <= 1
    # the first of a longer suite
    assert torch.equal(suite(images[:6], name)[0], chunked[:6])


def test_a_suites_file_holds_images_labels_and_poses_and_is_known_by_its_content():
    images, labels = images_of(5), torch.arange(5)
    content, digest = suite_file(images, labels, "rotation")
    assert suite_file(images, labels, "rotation") == (content, digest)
    file, (pictures, theta) = np.load(io.BytesIO(content)), suite(images, "rotation")
    assert set(file) == {"images", "labels", "theta"}
    assert np.array_equal(file["images"], pictures) and np.array_equal(file["theta"], theta)
    assert file["labels"].tolist() == [0, 1, 2, 3, 4] and file["images"].dtype == np.uint8
    rounded = (file["theta"] * 1e5).round()
    parts = (file["images"], file["labels"], rounded)
    assert hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest() == digest
    for other in ((images.flip(0), labels, "rotation"), (images, labels + 1, "rotation"),
                  (images, labels, "rotation45")):
        assert suite_file(*other)[1] != digest


# ---- errors --------------------------------------------------------------------------------------


def test_bad_input_is_named():
    images, params = images_of(2), sample_params("rotation", 2, generator())
    for bad, message in (
            (lambda: distortions.row_of("rotate"), "distortion: 'rotate' .*'rotation45', "),
            (lambda: sample_params(None, 2, generator()), "distortion: None"),
            (lambda: sample_params("rotation", 2, 0), "generator: 0"),
            (lambda: sample_params("rotation", 2, generator(), shift_x=0.1),
             "shift_x: the distortion 'rotation' has angle only"),
            (lambda: apply(images[..., :20], params), r"images: shape \(2, 3, 32, 20\)"),
            (lambda: apply(images.long(), params), r"images: dtype torch\.int64"),
            (lambda: apply(images[:1], params), "params: 2 poses")):
        with pytest.raises(ValueError, match=f"^{message}"):
            bad()
    assert distortions.row_of("rts") is DISTORTIONS["rts"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_the_pixels_are_the_same(name):
    images, params = images_of(8), sample_params(name, 8, generator())
    there = apply(images.cuda(), params.to("cuda")).cpu()
    torch.testing.assert_close(there, apply(images, params), rtol=0, atol=1e-3)
