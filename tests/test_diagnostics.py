"""What diagnostics say of answers that are known in advance."""

import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from stn_cifar import diagnostics, distortions
from stn_cifar.config import Config
from stn_cifar.data import Split
from stn_cifar.diagnostics import (
    Recovery,
    Survey,
    accuracy_against,
    evaluating,
    interval,
    pose_recovery,
    quantiles,
    readable,
    robustness,
    summary,
    survey,
    verdict,
)
from stn_cifar.stn import CIFAR10_STD, build_model
from stn_cifar.transforms import FAMILIES, compose, control_points, inverse

MEAN_SQUARE = 2 * (1 - 1 / 32**2) / 3  # of the distance of 32 x 32 pixels' centres from the middle


def similarity(angle=0.0, scale=1.0, x=0.0, y=0.0):
    """theta (1, 2, 3) in float64; angle in degrees."""
    params = torch.tensor([[math.radians(angle), math.log(scale), x, y]], dtype=torch.float64)
    return FAMILIES["similarity"].theta(params)


def pictures(count):
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model_of(params=None, **fields):
    """A model that answers `params` for every picture; without, something else for each."""
    model = build_model(Config(device="cpu", **fields))
    last = model.localization.regressor[-1]
    with torch.no_grad():
        if params is None:
            last.weight.copy_(0.3 * torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(0)))
        else:
            last.bias.copy_(torch.tensor(params))
    return model


# ---- survey ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize(("params", "scale", "outside", "moved"), [
    ([0.0, 0.0, 0.0, 0.0], 1, 0, 0),
    ([0.0, 0.0, 0.5, 0.0], 1, 0.25, 0.5),
    ([0.0, 0.0, 0.0, -3.0], 1, 1, 3),
    ([0.0, math.log(2), 0.0, 0.0], 2, 0.75, math.sqrt(MEAN_SQUARE)),
    ([0.0, -math.log(2), 0.1, 0.1], 0.5, 0, math.sqrt(MEAN_SQUARE / 4 + 0.02)),
    ([math.pi / 2, 0.0, 0.0, 0.0], 1, 0, math.sqrt(2 * MEAN_SQUARE)),
])
def test_survey_measures_the_known_answer(params, scale, outside, moved, supersample):
    seen = survey(model_of(params, transform="similarity", supersample=supersample), pictures(3))
    for values, expected in ((seen.scale, scale), (seen.outside, outside), (seen.moved, moved)):
        torch.testing.assert_close(values, torch.full((3,), float(expected)), atol=2e-3, rtol=2e-3)
    theta = FAMILIES["similarity"].theta(torch.tensor(params)[None])
    torch.testing.assert_close(seen.theta, theta.expand(3, 2, 3))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_survey_sees_every_picture_in_order_and_restores_the_mode(name, mode):
    model = model_of(transform=name).train(mode)
    seen = survey(model, pictures(7), batch_size=3)  # 3, 3, and 1 left over
    assert model.training == mode and all(len(part) == 7 for part in seen)
    for i, picture in enumerate(pictures(7)):
        _, theta = model.transform(picture[None])
        torch.testing.assert_close(seen.theta[i], theta[0], atol=1e-5, rtol=1e-4)
    assert len(seen.moved.unique()) == 7
    assert not any(part.requires_grad for part in seen) and all(p.grad is None for p in model.parameters())


def of_affine(entries):
    return FAMILIES["affine"].theta(torch.tensor(entries)[None])


@pytest.mark.parametrize(("family", "params", "determinant", "flipped"), [
    ("affine", [1.0, 0, 0, 0, 1, 0], 1, 0),
    ("affine", [2.0, 0, 0, 0, 1.5, 0], 3, 0),
    ("affine", [0.5, 0.3, 0.2, -0.4, 0.6, 0], 0.42, 0),
    ("affine", [-1.0, 0, 0, 0, 1, 0], -1, 1),  # left and right exchanged
    ("affine", [-1.0, 0, 0, 0, -1, 0], 1, 0),  # both: a half turn
    ("affine", [1.0, 0, 0, 1, 0, 0], 0, 0),  # a line
    ("attention", [math.log(0.1), 0.5, 0.5], 0.01, 0),
])
def test_survey_measures_the_area_and_whether_it_is_turned_over(family, params, determinant, flipped):
    seen = survey(model_of(params, transform=family), pictures(2))
    torch.testing.assert_close(seen.determinant, torch.full((2,), float(determinant)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(seen.flipped, torch.full((2,), float(flipped)))


def test_survey_finds_the_part_of_a_spline_that_is_folded():
    # the right half's control points go back to the left: x = (-1, -1/3, 1/3, 1) is read at (-1, -1/3, -1/3, -1)
    points = control_points(4)
    displacement = torch.where(points[:, :1] > 0, -2 * points * torch.tensor([1.0, 0]), 0.0)
    seen = survey(model_of(displacement.flatten().tolist(), transform="tps"), pictures(1))
    grid = FAMILIES["tps"].grid(displacement.float().reshape(1, -1), 400)[0].double().numpy()
    (dx_dy, dx_dx), (dy_dy, dy_dx) = (np.gradient(grid[..., k]) for k in (0, 1))
    folded = (dx_dx * dy_dy - dx_dy * dy_dx < 0).mean()
    assert 0.3 < folded < 0.7
    assert seen.flipped.item() == pytest.approx(folded, abs=0.03)
    areas = np.abs(dx_dx * dy_dy - dx_dy * dy_dx).mean() * 200**2  # half-widths squared, of the picture's 4, and steps
    assert abs(seen.determinant.item()) == pytest.approx(areas, rel=0.05)
    assert seen.scale.item() > 0.5


def test_rounding_turns_nothing_over():
    nearly = (0.3 - control_points(4) + 1e-6 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0))).flatten()
    assert survey(model_of(nearly.tolist(), transform="tps"), pictures(1)).flipped.item() == 0


def test_survey_measures_the_variance_that_the_classifier_is_left_with():
    images = pictures(5)
    model = model_of([math.log(0.7), 0.2, -0.3], transform="attention", padding_mode="border")
    warped, _ = model.transform(images)
    std = np.array(CIFAR10_STD)[:, None, None]
    before, after = (((x / std).var(axis=(2, 3), ddof=1)).mean(axis=1) for x in (images.numpy() / 255,
                                                                              warped.detach().numpy().astype(float)))
    np.testing.assert_allclose(survey(model, images).variance_left.numpy(), after / before, rtol=1e-3)
    flat = torch.full((1, 3, 32, 32), 40, dtype=torch.uint8)
    assert survey(model, flat).variance_left.item() == pytest.approx(1)  # nothing there to lose
    halves = flat.clone()
    halves[..., 16:] = 200
    assert survey(model_of([math.log(0.2), 0.5, 0.0], transform="attention"), halves).variance_left.item() < 1e-3


@pytest.mark.parametrize("mode", [True, False])
def test_survey_leaves_a_model_with_statistics_of_its_batches_as_it_was(mode):
    model = model_of()
    model.localization = torch.nn.Sequential(torch.nn.BatchNorm2d(3), model.localization)
    model.train(mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = survey(model, pictures(8))
    assert model.training == mode
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(seen.theta, survey(model, pictures(8), batch_size=3).theta)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluating_restores_the_mode_even_after_an_error(mode):
    model = model_of().train(mode)
    with pytest.raises(ValueError, match="images"), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        model(torch.zeros(1))
    assert model.training == mode and torch.is_grad_enabled()


# ---- the collapse monitor -------------------------------------------------------------------------------------------


def faults(seen):
    """What `verdict` finds, by the first words of its texts."""
    return [text.split(":")[0] for text in verdict(seen)]


STRETCHED = [1.3 * x for x in FAMILIES["affine"].start]
MIRRORED = [-1.0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(("family", "params", "expected"), [
    ("affine", STRETCHED, ["zoomed out"]),
    ("attention", [math.log(3), 0, 0], ["zoomed out"]),
    ("projective", [*STRETCHED, 0, 0], ["zoomed out"]),
    ("tps", (0.3 * control_points(4)).flatten().tolist(), ["zoomed out"]),
    ("translation", [0.9, 0], ["off the picture"]),
    ("translation", [5, -5], ["off the picture", "constant output"]),
    ("similarity", [0.3, math.log(0.8), 1.2, 0], ["off the picture"]),
    ("tps", [0.9, 0] * 16, ["off the picture"]),
    ("attention", [math.log(0.2), 0.1, 0.1], ["zoomed in to a spot"]),
    ("tps", (-0.8 * control_points(4)).flatten().tolist(), ["zoomed in to a spot"]),
    ("affine", [0, 0, 0, 0, 0, 0], ["zoomed in to a spot", "constant output"]),
    ("affine", [0.01, 0, 0, 0, 1, 0], ["zoomed in to a spot"]),  # to a line
    ("projective", [0.1, 0, 0, 0, 0.1, 0, 1, 1], ["zoomed in to a spot"]),
    ("affine", MIRRORED, ["mirrored or folded"]),
    ("projective", [*MIRRORED, 0, 0], ["mirrored or folded"]),
    ("tps", (control_points(4) * torch.tensor([-2, 0])).flatten().tolist(), ["mirrored or folded"]),
    ("tps", (torch.tensor([-2.0, 0]) * control_points(4).clamp_min(0)).flatten().tolist(), ["mirrored or folded"]),
    # nothing wrong, but the same for every image
    ("rotation", [math.pi / 4], []),
    ("attention", [math.log(0.5), 0.3, 0.1], []),
    ("affine", [-1, 0, 0, 0, -1, 0], []),
    ("tps", (0.1 * torch.randn(32, generator=torch.Generator().manual_seed(0))).tolist(), []),
])
def test_what_is_wrong_is_told(family, params, expected):
    seen = survey(model_of([float(x) for x in params], transform=family), pictures(50))
    assert faults(seen) == [*expected, "note"]
    assert "same treatment" in verdict(seen)[-1]


def test_a_fresh_transformer_of_any_family_does_nothing_and_that_is_noted():
    for name in FAMILIES:
        text, = verdict(survey(build_model(Config(device="cpu", transform=name)), pictures(9)))
        assert text.startswith("note:") and "does nothing" in text and "localization_lr_scale" in text
    text, = verdict(survey(build_model(Config(device="cpu", stn=False)), pictures(9)))
    assert "does nothing" in text


def test_a_transformer_that_answers_nan_is_broken():
    seen = survey(model_of([math.nan], transform="rotation"), pictures(2))
    text, = verdict(seen)
    assert text.startswith("broken:") and "learning_rate" in text


def surveyed(theta, family, images=None):
    """The Survey of a model that would answer `theta` (N, ...) for N images, whatever made it answer so."""
    model = build_model(Config(device="cpu", transform=family))
    answers = iter(theta.split(1000))
    model._predict = lambda images: next(answers)
    return survey(model, pictures(len(theta)) if images is None else images, batch_size=1000)


@pytest.mark.parametrize("name", [name for name, row in distortions.DISTORTIONS.items() if row.family != "tps"])
def test_undoing_a_known_distortion_exactly_is_well_behaved(name):
    family = "projective" if name == "projective" else "affine"
    applied = distortions.draw(name, 400, torch.Generator().manual_seed(0)).theta.double()
    assert verdict(surveyed(inverse(applied).float(), family)) == []


def good(count=100):
    """A Survey of a transformer that is alive and behaves well."""
    theta = similarity(20, 0.9).float().repeat(count, 1, 1) + 0.1 * torch.linspace(-1, 1, count)[:, None, None]
    one = torch.ones(count)
    return Survey(theta, 0.9 * one, 0.05 * one, 0.3 * one, 0.8 * one, 0 * one, one)


def mixed(low, high, share, count=100):
    """`count` values, `share` of them `high` and the others `low`."""
    return torch.where(torch.arange(count) < share * count, float(high), float(low))


@pytest.mark.parametrize(("changes", "expected"), [
    (dict(), []),
    (dict(outside=0.24), []), (dict(outside=0.26), ["off the picture"]),
    (dict(outside=0.26, scale=1.09), ["off the picture"]), (dict(outside=0.26, scale=1.11), ["zoomed out"]),
    (dict(scale=1.6), []),  # as where the padding is never reached
    (dict(outside=mixed(0, 1, 0.2)), []), (dict(outside=mixed(0, 1, 0.3)), ["off the picture"]),
    (dict(determinant=0.26**2), []), (dict(determinant=0.24**2), ["zoomed in to a spot"]),
    (dict(determinant=-0.24**2), ["zoomed in to a spot"]),
    (dict(determinant=mixed(0.8, 0.01, 0.09)), []), (dict(determinant=mixed(0.8, 0.01, 0.12)), ["zoomed in to a spot"]),
    (dict(flipped=mixed(0, 1, 0.09)), []), (dict(flipped=mixed(0, 1, 0.12)), ["mirrored or folded"]),
    (dict(flipped=0.12), ["mirrored or folded"]),
    (dict(variance_left=0.011), []), (dict(variance_left=0.009), ["constant output"]),
    (dict(variance_left=mixed(1, 0, 0.09)), []), (dict(variance_left=mixed(1, 0, 0.12)), ["constant output"]),
    (dict(moved=0.011), []), (dict(moved=0.009), ["note"]), (dict(moved=mixed(0, 0.02, 0.01)), []),
    (dict(outside=0.5, scale=1.5, determinant=0.01, flipped=1, variance_left=0),
     ["zoomed out", "zoomed in to a spot", "mirrored or folded", "constant output"]),
])
def test_where_the_monitor_begins_to_speak(changes, expected):
    seen = good()
    values = {name: value if torch.is_tensor(value) else torch.full((100,), float(value))
              for name, value in changes.items()}
    assert faults(seen._replace(**values)) == expected


def test_the_same_treatment_is_a_matter_of_all_of_theta():
    seen = good()
    same = seen.theta[:1].expand(100, 2, 3).clone()
    assert faults(seen._replace(theta=same)) == ["note"]
    assert faults(seen._replace(theta=same + 0.005 * torch.linspace(-1, 1, 100)[:, None, None])) == ["note"]
    same[:, 1, 2] = torch.linspace(-0.1, 0.1, 100)  # a shift alone makes it different
    assert faults(seen._replace(theta=same)) == []
    assert faults(Survey(*(part[:1] for part in seen))) == []  # one image has nothing to differ from


def test_each_remedy_is_a_setting_that_exists():
    named, one, zero = {}, torch.ones(100), torch.zeros(100)
    for changes in (dict(outside=one), dict(outside=one, scale=2 * one), dict(determinant=zero, flipped=one),
                    dict(variance_left=zero), dict(moved=zero)):
        for text in verdict(good()._replace(**changes)):
            words = re.findall(r"\b([a-z]+_[a-z_]+|transform)\b(?:=('?[\w.]*\w'?))?", text)
            assert words, text
            named |= {name: value.strip("'") or named.get(name, "") for name, value in words}
    known = {field.name: field.type for field in fields(Config)}
    assert set(named) <= set(known)
    assert {"outside_weight", "identity_weight", "scale_weight", "max_scale", "localization_lr_scale",
            "learning_rate"} <= set(named)
    Config.preset("tutorial", **{name: value if name == "transform" else float(value)
                                 for name, value in named.items() if value})


def test_a_note_gives_no_advice_against_that_on_a_fault():
    seen = good()._replace(outside=torch.ones(100), theta=good().theta[:1].expand(100, 2, 3))
    wrong, note = verdict(seen)
    assert "lower localization_lr_scale" in wrong and "localization_lr_scale" not in note


# ---- theta for people -----------------------------------------------------------------------------------------------


def test_readable_reads_back_what_theta_was_made_of():
    theta = torch.cat([similarity(30, 1.2, 0.1, -0.2), similarity(-100, 0.5), similarity(0, 1)])
    columns = readable(theta)
    expected = dict(rotation=[30, -100, 0], scale=[1.2, 0.5, 1], shear=[0, 0, 0], shift_x=[0.1, 0, 0],
                    shift_y=[-0.2, 0, 0])
    assert list(columns) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(columns[name], torch.tensor(values, dtype=torch.float64), msg=name)
    sheared = readable(torch.tensor([[[2.0, 2.0 * 0.3, 0], [0, 0.5, 0]]]))
    torch.testing.assert_close(sheared["shear"], torch.tensor([0.3]))
    torch.testing.assert_close(sheared["scale"], torch.tensor([1.0]))  # of the area: 2 by 1/2


def test_readable_takes_projective_maps_at_their_centre():
    theta = torch.cat([similarity(30, 1.2, 0.1, -0.2), torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64)], dim=1)
    for name, values in readable(theta).items():
        torch.testing.assert_close(values, readable(theta[:, :2])[name])


def test_readable_takes_a_spline_for_the_affine_map_nearest_to_it():
    points = control_points(4)
    affine = torch.tensor([[[0.9, -0.3, 0.2], [0.4, 1.3, -0.1]], [[1.0, 0, 0], [0, 1, 0]]], dtype=torch.float64)
    moved = points @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]
    for name, values in readable(moved).items():  # an affine one is that map
        torch.testing.assert_close(values, readable(affine)[name], msg=name)
    bent = moved + 0.2 * torch.randn(moved.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    design = np.column_stack([points.numpy(), np.ones(16)])
    nearest = [np.linalg.lstsq(design, one.numpy(), rcond=None)[0].T for one in bent]
    expected = readable(torch.from_numpy(np.array(nearest)))
    for name, values in readable(bent).items():
        torch.testing.assert_close(values, expected[name], msg=name)
    assert (readable(bent)["rotation"] - readable(moved)["rotation"]).abs().max() > 0.5  # it was bent


def test_summary_is_mean_and_standard_deviation_ready_for_json():
    theta = torch.cat([similarity(10), similarity(20), similarity(60)])
    seen = Survey(theta, torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 0.5, 1]), torch.tensor([4.0, 4, 4]),
                  torch.tensor([1.0, -4, 9]), torch.tensor([0.0, 1, 0]), torch.tensor([0.9, 0.8, 0.7]))
    told = summary(seen)
    assert list(told) == ["rotation", "scale", "shear", "shift_x", "shift_y", "grid_scale", "outside", "moved",
                          "determinant", "flipped", "variance_left"]
    expected = dict(rotation=[10, 20, 60], scale=[1, 1, 1], grid_scale=[1, 2, 3], outside=[0, 0.5, 1], moved=[4, 4, 4],
                    determinant=[1, -4, 9], flipped=[0, 1, 0], variance_left=[0.9, 0.8, 0.7])
    for name, values in expected.items():
        assert told[name]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert told[name]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    alone = summary(Survey(*(part[1:2] for part in seen)))
    assert alone["outside"] == dict(mean=0.5, std=0.0)


@pytest.mark.parametrize("params", [[0.0] * 6, [0.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 1, 0, 0], [1e-30, 1, 0, 0, 1, 0]])
def test_a_collapsed_map_can_still_be_told_in_numbers(params):
    seen = survey(model_of(params, transform="affine"), pictures(3))
    assert all(values.isfinite().all() for values in readable(seen.theta).values())
    json.dumps([summary(seen), quantiles(seen)], allow_nan=False)


def test_quantiles_are_those_of_the_images_ready_for_json():
    theta = torch.cat([similarity(angle, 1 + angle / 100, angle / 50, -angle / 30) for angle in (3, 1, 10, 7, 4, 30)])
    share = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.9, 0.3])
    seen = Survey(theta, *[share] * 6)
    told = quantiles(seen)
    assert list(told) == ["rotation", "scale", "shear", "shift_x", "shift_y", "outside"]
    angles = np.array([3, 1, 10, 7, 4, 30])
    for name, values in (("rotation", angles), ("scale", 1 + angles / 100), ("shift_y", -angles / 30),
                         ("outside", share.numpy())):
        np.testing.assert_allclose(told[name], np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]), atol=1e-6)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


# ---- was the pose undone? -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotation", "rts", "similarity", "affine", "projective"])
def test_the_exact_inverse_leaves_nothing(name):
    applied = distortions.draw(name, 50, torch.Generator().manual_seed(0)).theta.double()
    left = pose_recovery(applied, inverse(applied))
    for values in left:
        torch.testing.assert_close(values, torch.zeros(50, dtype=torch.float64), atol=1e-4, rtol=0)
    assert left.summary()["within_15"] == 1 and left.summary()["median_angle"] < 1e-4
    # repeating the pose instead of undoing it, or undoing another picture's, does leave something
    for wrong in (applied, inverse(applied).flip(0)):
        assert pose_recovery(applied, wrong).angle.median() > 5


@pytest.mark.parametrize(("residual", "angle", "log_scale", "shift"), [
    (dict(angle=25), 25, 0, 0), (dict(angle=-25), 25, 0, 0), (dict(angle=350), 10, 0, 0),
    (dict(angle=180), 180, 0, 0), (dict(scale=1.5), 0, math.log(1.5), 0), (dict(scale=0.5), 0, -math.log(2), 0),
    (dict(x=0.3, y=-0.4), 0, 0, 0.5), (dict(angle=90, scale=2, x=0.6, y=0.8), 90, math.log(2), 1)])
def test_a_known_residual_is_told_exactly(residual, angle, log_scale, shift):
    applied = distortions.draw("rts", 20, torch.Generator().manual_seed(1)).theta.double()
    answered = compose(inverse(applied), similarity(**residual).expand(20, 2, 3))
    left = pose_recovery(applied, answered)
    for values, expected in zip(left, (angle, log_scale, shift), strict=True):
        torch.testing.assert_close(values, torch.full((20,), float(expected), dtype=torch.float64), atol=1e-5, rtol=0)


def test_no_answer_leaves_the_pose_itself():
    applied = torch.cat([similarity(40, 1.3), similarity(-20, 0.8)])
    left = pose_recovery(applied, torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3))
    torch.testing.assert_close(left.angle, torch.tensor([40.0, 20], dtype=torch.float64))
    torch.testing.assert_close(left.log_scale, torch.tensor([1.3, 0.8], dtype=torch.float64).log())


def test_recovery_is_summed_up_by_medians_and_shares():
    left = Recovery(torch.tensor([0.0, 15, 16, 30, 170]), torch.tensor([0.1, -0.3, 0.2, -0.5, 0.0]),
                    torch.tensor([5.0, 1, 2, 3, 4]))
    told = left.summary()
    assert told == pytest.approx(dict(median_angle=16, within_15=2 / 5, within_30=4 / 5, median_abs_log_scale=0.2,
                                      median_shift=3))
    assert json.loads(json.dumps(told)) == told


def test_where_no_matrix_is_known_nothing_is_told():
    matrix, spline = similarity(10).float(), control_points(4).float()[None]
    assert pose_recovery(None, matrix) is pose_recovery(spline, matrix) is pose_recovery(matrix, spline) is None
    assert pose_recovery(matrix, matrix).angle.item() == pytest.approx(20, abs=1e-4)


# ---- accuracy against known distortions -----------------------------------------------------------------------------


class Spotter(torch.nn.Module):
    """Says where a picture's bright spot is: 0 right, 1 down, 2 left, 3 up, 4 in the middle. It keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.seen, self.modes = [], []

    def forward(self, images):
        self.seen.append(images)
        self.modes.append(self.training)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
        bright = (images.mean(1) > 0.6).float()
        x, y = ((bright * axis).sum(dim=(1, 2)) / bright.sum(dim=(1, 2)).clamp_min(1) for axis in (x, y))
        side = (torch.atan2(y, x) / (math.pi / 2)).round().long() % 4  # y points down
        return torch.nn.functional.one_hot(torch.where(torch.hypot(x, y) < 0.2, 4, side), 5).float()


def spots(place, count=7, label=0):
    """Dark pictures of class `label` with a bright spot of 5 x 5 pixels at `place` (x, y), half-widths."""
    images = torch.full((count, 3, 32, 32), 20, dtype=torch.uint8)
    column, row = (round((c + 1) * 16 - 0.5) for c in place)
    images[..., row - 2:row + 3, column - 2:column + 3] = 255
    return Split(images, torch.full((count,), label))


@pytest.mark.parametrize(("quantity", "place", "label", "values", "right"), [
    # content turns counter-clockwise: what was right goes up, and what was below comes to the right
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
def test_accuracy_is_that_on_pictures_distorted_as_said(quantity, place, label, values, right):
    assert accuracy_against(Spotter(), spots(place, label=label), quantity, values, batch_size=3) == right


def test_accuracy_counts_over_ragged_batches_in_evaluation_mode():
    split, model = spots((0.6, 0), 7), Spotter().train()
    split = replace(split, labels=torch.tensor([0, 0, 1, 0, 1, 1, 0]))
    assert accuracy_against(model, split, "angle", [0], batch_size=3) == [pytest.approx(4 / 7)]
    assert model.training and not any(model.modes) and [len(seen) for seen in model.seen] == [3, 3, 1]


def test_the_reference_is_cut_to_the_same_disc_and_nothing_else():
    images = torch.nn.functional.interpolate(pictures(2)[..., :8, :8].float(), 32, mode="bicubic").clamp(0, 255)
    split, model = Split(images.to(torch.uint8), torch.zeros(2, dtype=torch.int64)), Spotter()
    for quantity, values in dict(angle=[0, 40, -90], shift_x=[0, 0.4], scale=[1, 0.6, 1.7]).items():
        accuracy_against(model, split, quantity, values)
    y, x = np.mgrid[:32, :32] - 15.5
    outside = np.hypot(x, y) > 15.5
    for seen in model.seen:
        np.testing.assert_allclose(seen.numpy()[..., outside], np.array(distortions.OUTSIDE)[:, None] / 255
                                   * np.ones((2, 1, outside.sum())), atol=1e-6)
    upright = [model.seen[k].numpy() for k in (0, 3, 5)]
    for picture in upright:
        inner = np.hypot(x, y) < 13
        assert np.abs(picture - split.images.numpy() / 255)[..., inner].mean() < 0.01  # softened a little
        np.testing.assert_allclose(picture, upright[0], atol=1e-6)  # the same for all quantities
    assert np.abs(model.seen[1].numpy() - split.images.numpy() / 255)[..., inner].mean() > 0.05


@pytest.mark.parametrize("quantity", ["rotation", "bend", ""])
def test_an_unknown_quantity_is_named_with_those_there_are(quantity):
    with pytest.raises(ValueError, match=r"quantity: .* must be one of 'angle'"):
        accuracy_against(Spotter(), spots((0, 0)), quantity, [1])


def test_perspective_is_among_the_quantities():
    split, model = spots((0.6, 0)), Spotter()
    accuracy_against(model, split, "tilt_x", [0, 0.4])
    assert (model.seen[0] - model.seen[1]).abs().max() > 0.3


def test_robustness_is_the_accuracy_for_each_quantity_ready_for_json():
    model, split = Spotter(), spots((0.6, 0), 3)
    told = robustness(model, split, dict(angle=[0, 90], scale=[1.0]))
    assert told == dict(angle=dict(values=[0, 90], accuracy=[1, 0]), scale=dict(values=[1.0], accuracy=[1]))
    assert json.loads(json.dumps(told)) == told
    for quantity, values in diagnostics.KNOWN.items():  # each with the reference in it
        assert distortions.UPRIGHT[quantity] in values and list(values) == sorted(values)
    assert (min(diagnostics.KNOWN["angle"]), max(diagnostics.KNOWN["angle"])) == (-180, 180)


def test_accuracy_leaves_the_random_state_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    accuracy_against(Spotter(), spots((0, 0)), "angle", [10])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (1, 3), (601, 1000), (6010, 10_000), (9999, 10_000)])
def test_the_interval_is_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
    low, high = interval(right / count, count)
    assert 0 <= low <= right / count <= high <= 1
