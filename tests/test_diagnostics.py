"""What diagnostics say of transformers whose predictions are known in advance."""

import dataclasses
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from stn_cifar import Config, Split, build_model, diagnostics, distortions
from stn_cifar.diagnostics import (
    PoseRecovery,
    Statistics,
    accuracy_against,
    evaluating,
    findings,
    outside_share,
    pose_recovery,
    quantiles,
    readable,
    robustness,
    statistics,
    summary,
    wilson_interval,
)
from stn_cifar.matrices import compose, inverse
from stn_cifar.spatial_transformer import Alignment, SpatialTransformer
from stn_cifar.stn import CIFAR10_STD, STNClassifier
from stn_cifar.transforms import FAMILIES, control_points

MEAN_SQUARE = 2 * (1 - 1 / 32**2) / 3  # distance of 32 x 32 pixels' centres from the middle


def similarity(angle=0.0, scale=1.0, x=0.0, y=0.0):
    """theta (1, 2, 3) in float64; angle in degrees."""
    params = torch.tensor([[math.radians(angle), math.log(scale), x, y]], dtype=torch.float64)
    return FAMILIES["similarity"].theta(params)


def images_of(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def model_of(params=None, **fields):
    """A model that predicts `params` for every image; without, something else for each."""
    model = build_model(Config(device="cpu", **fields))
    last = model.transformer.localization.regressor[-1]
    with torch.no_grad():
        if params is None:
            generator = torch.Generator().manual_seed(0)
            last.weight.copy_(0.3 * torch.randn(last.weight.shape, generator=generator))
        else:
            last.bias.copy_(torch.tensor(params))
    return model


class Prescribed(torch.nn.Module):
    """A transformer with the given theta, whatever it sees."""

    def __init__(self, theta, family):
        super().__init__()
        self.transformer = SpatialTransformer(torch.nn.Identity(), family, initialize=False)
        self.batches = iter(theta.split(1000))

    def forward(self, images, *_):
        theta = next(self.batches)
        warped, grid = self.transformer.warp(images, theta)
        return Alignment(warped, theta, grid)


def statistics_of(theta, family):
    model = STNClassifier(Prescribed(theta, family), torch.nn.Flatten(), (3, 32, 32), 3072)
    return statistics(model, images_of(len(theta)), batch_size=1000)


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize(("params", "scale", "outside", "moved"), [
    ([0.0, 0.0, 0.0, 0.0], 1, 0, 0),
    ([0.0, 0.0, 0.5, 0.0], 1, 0.25, 0.5),
    ([0.0, 0.0, 0.0, -3.0], 1, 1, 3),
    ([0.0, math.log(2), 0.0, 0.0], 2, 0.75, math.sqrt(MEAN_SQUARE)),
    ([0.0, -math.log(2), 0.1, 0.1], 0.5, 0, math.sqrt(MEAN_SQUARE / 4 + 0.02)),
    ([math.pi / 2, 0.0, 0.0, 0.0], 1, None, math.sqrt(2 * MEAN_SQUARE)),
])
def test_statistics_measure_a_known_prediction(params, scale, outside, moved, supersample):
    model = model_of(params, transform="similarity", supersample=supersample)
    measured = statistics(model, images_of(3))
    # a quarter turn puts samples on the very edge: which side they fall to is rounding
    for values, expected in ((measured.scale, scale), (measured.outside, outside),
                             (measured.moved, moved)):
        if expected is not None:
            torch.testing.assert_close(values, torch.full((3,), float(expected)), atol=2e-3,
                                       rtol=2e-3)
    theta = FAMILIES["similarity"].theta(torch.tensor(params)[None])
    torch.testing.assert_close(measured.theta, theta.expand(3, 2, 3))


def test_outside_share_counts_points_by_hand():
    grid = torch.tensor([
        [[[0.0, 0.0], [1.0, -1.0]], [[-1.0, 1.0], [0.5, 0.9]]],  # the edge still belongs to it
        [[[1.01, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],  # out on the right
        [[[0.0, -1.01], [-2.0, 0.0]], [[3.0, 3.0], [0.0, 0.0]]],  # above; left; both counts once
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


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_are_of_every_image_in_order(name, mode):
    model = model_of(transform=name).train(mode)
    measured = statistics(model, images_of(7), batch_size=3)  # 3, 3, and 1 left over
    assert model.training == mode and all(len(part) == 7 for part in measured)
    for i, image in enumerate(images_of(7)):
        _, theta = model.transform(image[None])
        torch.testing.assert_close(measured.theta[i], theta[0], atol=1e-5, rtol=1e-4)
    assert len(measured.moved.unique()) == 7
    assert not any(part.requires_grad for part in measured)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("family", "params", "determinant", "flipped"), [
    ("affine", [1.0, 0, 0, 0, 1, 0], 1, 0),
    ("affine", [2.0, 0, 0, 0, 1.5, 0], 3, 0),
    ("affine", [0.5, 0.3, 0.2, -0.4, 0.6, 0], 0.42, 0),
    ("affine", [-1.0, 0, 0, 0, 1, 0], -1, 1),  # left and right exchanged
    ("affine", [-1.0, 0, 0, 0, -1, 0], 1, 0),  # both: a half turn
    ("affine", [1.0, 0, 0, 1, 0, 0], 0, 0),  # a line
    ("attention", [math.log(0.1), 0.5, 0.5], 0.01, 0),
])
def test_statistics_measure_the_area_and_whether_it_is_turned_over(family, params, determinant,
                                                                   flipped):
    measured = statistics(model_of(params, transform=family), images_of(2))
    for values, expected in ((measured.determinant, determinant), (measured.flipped, flipped)):
        torch.testing.assert_close(values, torch.full((2,), float(expected)), atol=1e-3, rtol=1e-3)


def test_statistics_find_the_part_of_a_spline_that_is_folded():
    # the right half's control points go back to the left: x = (-1, -1/3, 1/3, 1) is read at
    # (-1, -1/3, -1/3, -1)
    points = control_points(4)
    moved = torch.where(points[:, :1] > 0, -2 * points * torch.tensor([1.0, 0]), 0.0)
    measured = statistics(model_of(moved.flatten().tolist(), transform="tps"), images_of(1))
    grid = FAMILIES["tps"].grid(moved.float().reshape(1, -1), 400)[0].double().numpy()
    (dx_dy, dx_dx), (dy_dy, dy_dx) = (np.gradient(grid[..., k]) for k in (0, 1))
    jacobian = dx_dx * dy_dy - dx_dy * dy_dx
    folded = (jacobian < 0).mean()
    assert 0.3 < folded < 0.7 and measured.flipped.item() == pytest.approx(folded, abs=0.03)
    areas = np.abs(jacobian).mean() * 200**2  # of the picture's 4 half-widths squared, and steps
    assert abs(measured.determinant.item()) == pytest.approx(areas, rel=0.05)
    assert measured.scale.item() > 0.5


def test_rounding_turns_nothing_over():
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    nearly_a_point = (0.3 - control_points(4) + 1e-6 * noise).flatten().tolist()
    model = model_of(nearly_a_point, transform="tps")
    assert statistics(model, images_of(1)).flipped.item() == 0


def test_statistics_measure_the_variance_that_the_classifier_is_left_with():
    images, params = images_of(5), [math.log(0.7), 0.2, -0.3]
    model = model_of(params, transform="attention", padding_mode="border")
    warped = model.transform(images)[0].detach().numpy().astype(float)
    std = np.array(CIFAR10_STD)[:, None, None]
    before, after = ((x / std).var(axis=(2, 3), ddof=1).mean(axis=1)
                     for x in (images.numpy() / 255, warped))
    measured = statistics(model, images).variance_left
    np.testing.assert_allclose(measured.numpy(), after / before, rtol=1e-3)
    flat = torch.full((1, 3, 32, 32), 40, dtype=torch.uint8)
    assert statistics(model, flat).variance_left.item() == pytest.approx(1)  # nothing to lose
    flat[..., 16:] = 200
    zoomed_in = model_of([math.log(0.2), 0.5, 0.0], transform="attention")
    assert statistics(zoomed_in, flat).variance_left.item() < 1e-3


@pytest.mark.parametrize("mode", [True, False])
def test_statistics_leave_a_model_with_batch_normalization_as_it_was(mode):
    model = model_of()
    model.transformer.localization = torch.nn.Sequential(torch.nn.BatchNorm2d(3),
                                                         model.transformer.localization)
    model.train(mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured = statistics(model, images_of(8))
    assert model.training == mode
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    again = statistics(model, images_of(8), batch_size=3)
    torch.testing.assert_close(measured.theta, again.theta)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluating_restores_the_mode_even_after_an_error(mode):
    model = model_of().train(mode)
    with pytest.raises(ValueError, match="images"), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        model(torch.zeros(1))
    assert model.training == mode and torch.is_grad_enabled()


# ---- findings ------------------------------------------------------------------------------------


def faults(measured):
    """What `findings` says, by the first words of its texts."""
    return [text.split(":")[0] for text in findings(measured)]


STRETCHED = [1.3 * x for x in FAMILIES["affine"].identity_params]
MIRRORED = [-1.0, 0, 0, 0, 1, 0]
POINTS = control_points(4)
FOLD, SPREAD = torch.tensor([-2.0, 0]), torch.randn(32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("family", "params", "expected"), [
    ("affine", STRETCHED, ["zoomed out"]),
    ("attention", [math.log(3), 0, 0], ["zoomed out"]),
    ("projective", [*STRETCHED, 0, 0], ["zoomed out"]),
    ("tps", (0.3 * POINTS).flatten().tolist(), ["zoomed out"]),
    ("translation", [0.9, 0], ["off the picture"]),
    ("translation", [5, -5], ["off the picture", "constant output"]),
    ("similarity", [0.3, math.log(0.8), 1.2, 0], ["off the picture"]),
    ("tps", [0.9, 0] * 16, ["off the picture"]),
    ("attention", [math.log(0.2), 0.1, 0.1], ["zoomed in to a spot"]),
    ("tps", (-0.8 * POINTS).flatten().tolist(), ["zoomed in to a spot"]),
    ("affine", [0, 0, 0, 0, 0, 0], ["zoomed in to a spot", "constant output"]),
    ("affine", [0.01, 0, 0, 0, 1, 0], ["zoomed in to a spot"]),  # to a line
    ("projective", [0.1, 0, 0, 0, 0.1, 0, 1, 1], ["zoomed in to a spot"]),
    ("affine", MIRRORED, ["mirrored or folded"]),
    ("projective", [*MIRRORED, 0, 0], ["mirrored or folded"]),
    ("tps", (POINTS * FOLD).flatten().tolist(), ["mirrored or folded"]),
    ("tps", (FOLD * POINTS.clamp_min(0)).flatten().tolist(), ["mirrored or folded"]),
    # nothing wrong, but the same for every image
    ("rotation", [math.pi / 4], []),
    ("attention", [math.log(0.5), 0.3, 0.1], []),
    ("affine", [-1, 0, 0, 0, -1, 0], []),
    ("tps", (0.1 * SPREAD).tolist(), []),
])
def test_what_is_wrong_is_told(family, params, expected):
    model = model_of([float(x) for x in params], transform=family)
    measured = statistics(model, images_of(50))
    assert faults(measured) == [*expected, "note"]
    assert "same treatment" in findings(measured)[-1]


def test_a_fresh_transformer_does_nothing_and_that_is_noted():
    for fields in (*(dict(transform=name) for name in FAMILIES), dict(stn=False)):
        model = build_model(Config(device="cpu", **fields))
        text, = findings(statistics(model, images_of(9)))
        assert text.startswith("note:") and "does nothing" in text
        assert "localization_lr_scale" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_transformer_whose_theta_cannot_be_measured_is_broken(value):
    measured = statistics(model_of([value, 0.0, 0.0], transform="attention"), images_of(2))
    text, = findings(measured)
    assert text.startswith("broken:") and "learning_rate" in text
    told = summary(measured), quantiles(measured)["rotation"]
    numbers = [*told[0]["moved"].values(), *told[0]["rotation"].values(), *told[1]]
    assert not any(map(math.isfinite, numbers))


@pytest.mark.parametrize("name", [key for key, row in distortions.DISTORTIONS.items()
                                  if row.family != "tps" and key != "disc"])  # nothing to undo
def test_undoing_a_known_distortion_exactly_is_well_behaved(name):
    family = "projective" if name == "projective" else "affine"
    applied = distortions.sample_params(name, 400, torch.Generator().manual_seed(0)).theta.double()
    assert findings(statistics_of(inverse(applied).float(), family)) == []


def good(count=100, **changes):
    """Statistics of a transformer that is alive and behaves well, but for `changes`."""
    ramp = 0.1 * torch.linspace(-1, 1, count)[:, None, None]
    theta = similarity(20, 0.9).float().repeat(count, 1, 1) + ramp
    values = dict(scale=0.9, outside=0.05, moved=0.3, determinant=0.8, flipped=0,
                  variance_left=1) | changes
    return Statistics(**dict(theta=theta) | {
        key: value if torch.is_tensor(value) else torch.full((count,), float(value))
        for key, value in values.items()})


def mixed(low, high, share, count=100):
    """`count` values, `share` of them `high` and the others `low`."""
    return torch.where(torch.arange(count) < share * count, float(high), float(low))


SPOT = ["zoomed in to a spot"]


@pytest.mark.parametrize(("changes", "expected"), [
    (dict(), []),
    (dict(outside=0.24), []), (dict(outside=0.26), ["off the picture"]),
    (dict(outside=0.26, scale=1.09), ["off the picture"]),
    (dict(outside=0.26, scale=1.11), ["zoomed out"]),
    (dict(scale=1.6), []),  # as where the padding is never reached
    (dict(outside=mixed(0, 1, 0.2)), []), (dict(outside=mixed(0, 1, 0.3)), ["off the picture"]),
    (dict(determinant=0.26**2), []), (dict(determinant=0.24**2), SPOT),
    (dict(determinant=-0.24**2), SPOT),
    (dict(determinant=mixed(0.8, 0.01, 0.09)), []),
    (dict(determinant=mixed(0.8, 0.01, 0.12)), SPOT),
    (dict(flipped=mixed(0, 1, 0.09)), []), (dict(flipped=0.12), ["mirrored or folded"]),
    (dict(flipped=mixed(0, 1, 0.12)), ["mirrored or folded"]),
    (dict(variance_left=0.011), []), (dict(variance_left=0.009), ["constant output"]),
    (dict(variance_left=mixed(1, 0, 0.09)), []),
    (dict(variance_left=mixed(1, 0, 0.12)), ["constant output"]),
    (dict(moved=0.011), []), (dict(moved=0.009), ["note"]), (dict(moved=mixed(0, 0.02, 0.01)), []),
    (dict(outside=0.5, scale=1.5, determinant=0.01, flipped=1, variance_left=0),
     ["zoomed out", *SPOT, "mirrored or folded", "constant output"]),
])
def test_where_findings_begin(changes, expected):
    assert faults(good(**changes)) == expected


def test_the_same_treatment_is_a_matter_of_all_of_theta():
    same = good().theta[:1].expand(100, 2, 3).clone()
    assert faults(good(theta=same)) == ["note"]
    ramp = torch.linspace(-1, 1, 100)
    assert faults(good(theta=same + 0.005 * ramp[:, None, None])) == ["note"]
    same[:, 1, 2] = 0.1 * ramp  # a shift alone makes it different
    assert faults(good(theta=same)) == []
    assert faults(good(count=1)) == []  # one has nothing to differ from


def test_each_remedy_is_a_setting_that_exists():
    named = {}
    for changes in (dict(outside=1), dict(outside=1, scale=2), dict(determinant=0, flipped=1),
                    dict(variance_left=0), dict(moved=0)):
        for text in findings(good(**changes)):
            words = re.findall(r"\b([a-z]+_[a-z_]+|transform)\b(?:=('?[\w.]*\w'?))?", text)
            assert words, text
            named |= {key: value.strip("'") or named.get(key, "") for key, value in words}
    assert set(named) <= {field.name for field in dataclasses.fields(Config)}
    assert {"outside_weight", "identity_weight", "scale_weight", "max_scale", "learning_rate",
            "localization_lr_scale"} <= set(named)
    Config(**{key: value if key == "transform" else float(value)
              for key, value in named.items() if value})


def test_a_note_gives_no_advice_against_that_on_a_fault():
    wrong, note = findings(good(outside=1, theta=good().theta[:1].expand(100, 2, 3)))
    assert "lower localization_lr_scale" in wrong and "localization_lr_scale" not in note


# ---- theta for people ----------------------------------------------------------------------------


def test_readable_reads_back_what_theta_was_made_of():
    theta = torch.cat([similarity(30, 1.2, 0.1, -0.2), similarity(-100, 0.5), similarity(0, 1)])
    expected = dict(rotation=[30, -100, 0], scale=[1.2, 0.5, 1], shear=[0, 0, 0],
                    shift_x=[0.1, 0, 0], shift_y=[-0.2, 0, 0])
    assert list(readable(theta)) == list(expected)
    for name, values in readable(theta).items():
        torch.testing.assert_close(values, torch.tensor(expected[name], dtype=torch.float64))
    sheared = readable(torch.tensor([[[2.0, 2.0 * 0.3, 0], [0, 0.5, 0]]]))
    assert sheared["shear"].item() == pytest.approx(0.3)
    assert sheared["scale"].item() == pytest.approx(1)  # of the area: 2 by 1/2


def test_readable_takes_projective_maps_at_their_centre():
    row = torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64)
    theta = torch.cat([similarity(30, 1.2, 0.1, -0.2), row], dim=1)
    for name, values in readable(theta).items():
        torch.testing.assert_close(values, readable(theta[:, :2])[name])


def test_readable_takes_a_spline_for_the_affine_map_nearest_to_it():
    affine = torch.tensor([[[0.9, -0.3, 0.2], [0.4, 1.3, -0.1]], [[1.0, 0, 0], [0, 1, 0]]],
                          dtype=torch.float64)
    moved = POINTS @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]
    for name, values in readable(moved).items():  # an affine one is that map
        torch.testing.assert_close(values, readable(affine)[name])
    bent = moved + 0.2 * SPREAD.double().reshape(1, 16, 2)
    design = np.column_stack([POINTS.numpy(), np.ones(16)])
    nearest = np.array([np.linalg.lstsq(design, t.numpy(), rcond=None)[0].T for t in bent])
    for name, values in readable(torch.from_numpy(nearest)).items():
        torch.testing.assert_close(readable(bent)[name], values)
    assert (readable(bent)["rotation"] - readable(moved)["rotation"]).abs().max() > 0.5


def test_summary_is_mean_and_standard_deviation_ready_for_json():
    angles = torch.cat([similarity(10), similarity(20), similarity(60)])
    columns = dict(outside=[0, 0.5, 1], moved=[4, 4, 4], determinant=[1, -4, 9],
                   flipped=[0, 1, 0], variance_left=[0.9, 0.8, 0.7])
    measured = Statistics(angles, torch.tensor([1.0, 2, 3]),
                          *(torch.tensor(values).float() for values in columns.values()))
    told = summary(measured)
    expected = dict(rotation=[10, 20, 60], scale=[1, 1, 1], shear=[0, 0, 0], shift_x=[0, 0, 0],
                    shift_y=[0, 0, 0], sampling_scale=[1, 2, 3]) | columns
    assert list(told) == list(expected)
    for name, values in expected.items():
        assert told[name]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert told[name]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    alone = summary(Statistics(*(part[1:2] for part in measured)))
    assert alone["outside"] == dict(mean=0.5, std=0.0)


@pytest.mark.parametrize("params", [[0.0] * 6, [0.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 1, 0, 0],
                                    [1e-30, 1, 0, 0, 1, 0]])
def test_a_collapsed_map_can_still_be_told_in_numbers(params):
    measured = statistics(model_of(params, transform="affine"), images_of(3))
    assert all(values.isfinite().all() for values in readable(measured.theta).values())
    json.dumps([summary(measured), quantiles(measured)], allow_nan=False)


def test_quantiles_are_those_of_the_images_ready_for_json():
    angles = np.array([3, 1, 10, 7, 4, 30])
    theta = torch.cat([similarity(a, 1 + a / 100, a / 50, -a / 30) for a in angles.tolist()])
    share = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.9, 0.3])
    told = quantiles(Statistics(theta, *[share] * 6))
    assert list(told) == ["rotation", "scale", "shear", "shift_x", "shift_y", "outside"]
    for name, values in (("rotation", angles), ("scale", 1 + angles / 100),
                         ("shift_y", -angles / 30), ("outside", share.numpy())):
        expected = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(told[name], expected, atol=1e-6)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


# ---- was the pose undone? ------------------------------------------------------------------------


def applied_by(name, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return distortions.sample_params(name, count, generator).theta.double()


@pytest.mark.parametrize("name", ["rotation", "rts", "similarity", "affine", "projective"])
def test_the_exact_inverse_leaves_nothing(name):
    applied = applied_by(name, 50)
    left = pose_recovery(applied, inverse(applied))
    zero = torch.zeros(50, dtype=torch.float64)
    for values in left:
        torch.testing.assert_close(values, zero, atol=1e-4, rtol=0)
    assert left.summary()["within_5"] == 1 and left.summary()["mean_rotation_error"] < 1e-4
    assert left.histogram() == [50] + [0] * 35
    # repeating the pose instead of undoing it, or undoing another image's, leaves something
    for wrong in (applied, inverse(applied).flip(0)):
        assert pose_recovery(applied, wrong).angle.median() > 5


@pytest.mark.parametrize(("residual", "angle", "log_scale", "shift"), [
    (dict(angle=25), 25, 0, 0), (dict(angle=-25), 25, 0, 0), (dict(angle=350), 10, 0, 0),
    (dict(angle=180), 180, 0, 0), (dict(scale=1.5), 0, math.log(1.5), 0),
    (dict(scale=0.5), 0, -math.log(2), 0), (dict(x=0.3, y=-0.4), 0, 0, 0.5),
    (dict(angle=90, scale=2, x=0.6, y=0.8), 90, math.log(2), 1)])
def test_a_known_residual_is_told_exactly(residual, angle, log_scale, shift):
    applied = applied_by("rts", 20, seed=1)
    predicted = compose(inverse(applied), similarity(**residual).expand(20, 2, 3))
    for values, expected in zip(pose_recovery(applied, predicted), (angle, log_scale, shift),
                                strict=True):
        expected = torch.full((20,), float(expected), dtype=torch.float64)
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


def test_the_identity_leaves_the_pose_itself():
    applied = torch.cat([similarity(40, 1.3), similarity(-20, 0.8)])
    left = pose_recovery(applied, torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3))
    torch.testing.assert_close(left.angle, torch.tensor([40.0, 20], dtype=torch.float64))
    torch.testing.assert_close(left.log_scale, torch.tensor([1.3, 0.8]).double().log())


def test_recovery_is_summed_up_by_medians_means_and_shares():
    left = PoseRecovery(torch.tensor([0.0, 15, 22, 94, 170]),
                        torch.tensor([0.1, -0.3, 0.2, -0.5, 0.0]), torch.tensor([5.0, 1, 2, 3, 4]))
    told = left.summary()
    assert told == pytest.approx(dict(
        median_rotation_error=22, mean_rotation_error=301 / 5, within_5=1 / 5, within_15=2 / 5,
        within_22_5=3 / 5, within_30=3 / 5,
        # to the nearest quarter turn: 0, 15, 22, 4, 10
        median_rotation_error_mod90=10, mean_rotation_error_mod90=51 / 5, within_5_mod90=2 / 5,
        within_22_5_mod90=1, median_abs_log_scale=0.2, median_shift=3))
    assert json.loads(json.dumps(told)) == told
    histogram = left.histogram()
    assert sum(histogram) == 5 and len(histogram) == 36
    assert [i for i, count in enumerate(histogram) if count] == [0, 3, 4, 18, 34]
    assert PoseRecovery(torch.tensor([180.0]), *left[1:]).histogram()[-1] == 1


def test_a_recovery_that_is_not_finite_is_no_success():
    applied, broken = applied_by("rts", 3), torch.full((3, 2, 3), math.nan, dtype=torch.float64)
    left = pose_recovery(applied, broken)
    told = left.summary()
    assert math.isnan(told["median_rotation_error"]) and told["within_30"] == 0
    assert left.histogram()[0] == 0
    for huge in (1e10, 1e30, math.inf):  # a similarity with a bias of 1e10, say
        theta = torch.full((3, 2, 3), huge)
        assert sum(pose_recovery(applied.float(), theta).histogram()) in (0, 3)


def test_where_no_matrix_is_known_there_is_no_recovery():
    matrix, spline = similarity(10).float(), POINTS.float()[None]
    assert pose_recovery(None, matrix) is None
    assert pose_recovery(spline, matrix) is None and pose_recovery(matrix, spline) is None
    assert pose_recovery(matrix, matrix).angle.item() == pytest.approx(20, abs=1e-4)


# ---- accuracy against known distortions ----------------------------------------------------------


class Spotter(torch.nn.Module):
    """Where is the bright spot: 0 right, 1 down, 2 left, 3 up, 4 in the middle; keeps its input."""

    def __init__(self):
        super().__init__()
        self.device, self.batches, self.modes = torch.device("cpu"), [], []

    def forward(self, images):
        self.batches.append(images)
        self.modes.append(self.training)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
        bright = (images.mean(1) > 0.6).float()
        x, y = ((bright * axis).sum(dim=(1, 2)) / bright.sum(dim=(1, 2)).clamp_min(1)
                for axis in (x, y))
        side = (torch.atan2(y, x) / (math.pi / 2)).round().long() % 4  # y points down
        side = torch.where(torch.hypot(x, y) < 0.2, 4, side)
        return torch.nn.functional.one_hot(side, 5).float()


def spots(place, count=7, label=0):
    """Dark images of class `label` with a bright spot of 5 x 5 pixels at `place`, half-widths."""
    images = torch.full((count, 3, 32, 32), 20, dtype=torch.uint8)
    column, row = (round((c + 1) * 16 - 0.5) for c in place)
    images[..., row - 2:row + 3, column - 2:column + 3] = 255
    return Split(images, torch.full((count,), label))


@pytest.mark.parametrize(("quantity", "place", "label", "values", "right"), [
    # content turns counter-clockwise: what was right goes up, what was below comes to the right
    ("angle", (0.6, 0), 0, [-180, -90, 0, 30, 90, 180], [0, 0, 1, 1, 0, 0]),
    ("angle", (0, 0.6), 0, [-180, -90, 0, 90, 180], [0, 0, 0, 1, 0]),
    ("angle", (0.6, 0), 3, [-90, 0, 90], [0, 0, 1]),
    # a positive shift moves the content to the left, or up
    ("shift_x", (0, 0), 0, [-0.5, 0, 0.5], [1, 0, 0]),
    ("shift_x", (0, 0), 2, [-0.5, 0, 0.5], [0, 0, 1]),
    ("shift_y", (0, 0), 1, [-0.5, 0, 0.5], [1, 0, 0]),
    # a scale above 1 makes it smaller, and below 1 takes a spot from the middle
    ("scale", (0.12, 0), 4, [0.4, 1, 1.5], [0, 1, 1]),
    ("scale", (0.12, 0), 0, [0.4, 1], [1, 0]),
])
def test_accuracy_is_that_on_images_distorted_as_said(quantity, place, label, values, right):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    split = spots(place, label=label)
    assert accuracy_against(Spotter(), split, quantity, values, batch_size=3) == right
    assert torch.equal(torch.random.get_rng_state(), state)


def test_accuracy_counts_over_ragged_batches_in_evaluation_mode():
    model, labels = Spotter().train(), torch.tensor([0, 0, 1, 0, 1, 1, 0])
    split = replace(spots((0.6, 0)), labels=labels)
    assert accuracy_against(model, split, "angle", [0], batch_size=3) == [pytest.approx(4 / 7)]
    assert model.training and not any(model.modes)
    assert [len(batch) for batch in model.batches] == [3, 3, 1]


def test_the_reference_is_cut_to_the_same_disc_and_nothing_else():
    smooth = torch.nn.functional.interpolate(images_of(2)[..., :8, :8].float(), 32, mode="bicubic")
    split = Split(smooth.clamp(0, 255).to(torch.uint8), torch.zeros(2, dtype=torch.int64))
    model, y, x = Spotter(), *np.mgrid[:32, :32] - 15.5
    for quantity, values in dict(angle=[0, 40, -90], shift_x=[0, 0.4], scale=[1, 1.7]).items():
        accuracy_against(model, split, quantity, values)
    colour = np.array(distortions.OUTSIDE)[:, None] / 255
    for shown in model.batches:
        around = shown.numpy()[..., np.hypot(x, y) > 15.5]
        np.testing.assert_allclose(around, np.broadcast_to(colour, around.shape), atol=1e-6)
    inner, original = np.hypot(x, y) < 13, split.images.numpy() / 255
    upright = [model.batches[k].numpy() for k in (0, 3, 5)]
    for image in upright:
        assert np.abs(image - original)[..., inner].mean() < 0.01  # softened a little
        np.testing.assert_allclose(image, upright[0], atol=1e-6)  # the same for all quantities
    assert np.abs(model.batches[1].numpy() - original)[..., inner].mean() > 0.05


@pytest.mark.parametrize("quantity", ["rotation", "bend", ""])
def test_an_unknown_quantity_is_named_with_those_there_are(quantity):
    with pytest.raises(ValueError, match=r"^quantity: .* must be one of 'angle'.*'tilt_x'"):
        accuracy_against(Spotter(), spots((0, 0)), quantity, [1])
    model = Spotter()
    accuracy_against(model, spots((0.6, 0)), "tilt_x", [0, 0.4])  # perspective is among them
    assert (model.batches[0] - model.batches[1]).abs().max() > 0.3


def test_robustness_is_the_accuracy_for_each_quantity_ready_for_json():
    told = robustness(Spotter(), spots((0.6, 0), 3), dict(angle=[0, 90], scale=[1.0]))
    assert told == dict(angle=dict(values=[0, 90], accuracy=[1, 0]),
                        scale=dict(values=[1.0], accuracy=[1]))
    assert json.loads(json.dumps(told)) == told
    for quantity, values in diagnostics.KNOWN.items():  # each with the reference in it
        assert distortions.UPRIGHT[quantity] in values and list(values) == sorted(values)
    assert (diagnostics.KNOWN["angle"][0], diagnostics.KNOWN["angle"][-1]) == (-180, 180)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (1, 3), (601, 1000),
                                              (6010, 10_000), (9999, 10_000)])
def test_the_interval_is_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    low, high = wilson_interval(right / count, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= right / count <= high <= 1
