"""What diagnostics say of answers that are known in advance."""

import json
import math

import numpy as np
import pytest
import torch

from stn_cifar import distortions
from stn_cifar.config import Config
from stn_cifar.diagnostics import Recovery, Survey, pose_recovery, readable, summary, survey
from stn_cifar.stn import build_model
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
    seen = Survey(theta, torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 0.5, 1]), torch.tensor([4.0, 4, 4]))
    told = summary(seen)
    assert list(told) == ["rotation", "scale", "shear", "shift_x", "shift_y", "grid_scale", "outside", "moved"]
    expected = dict(rotation=[10, 20, 60], scale=[1, 1, 1], grid_scale=[1, 2, 3], outside=[0, 0.5, 1], moved=[4, 4, 4])
    for name, values in expected.items():
        assert told[name]["mean"] == pytest.approx(np.mean(values), abs=1e-9)
        assert told[name]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
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
