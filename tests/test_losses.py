"""The transformer's terms of the loss: each against a closed form, and what it does to training."""

import math

import numpy as np
import pytest
import torch

from stn_cifar import Config, Data, build_model, distortions, fit
from stn_cifar.matrices import inverse
from stn_cifar.pose_bins import TARGET_STD, PoseBins
from stn_cifar.spatial_transformer import Alignment
from stn_cifar.training.losses import LOSSES, Known, transformer_loss
from stn_cifar.transforms import FAMILIES

MEAN_SQUARE = 2 * (1 - 1 / 32**2) / 3  # distance of 32 x 32 pixels' centres from the middle


def aligned(name, *params, count=3):
    """The Alignment of `count` images under `params`, float64."""
    family = FAMILIES[name]
    theta = family.theta(torch.tensor([params], dtype=torch.float64).expand(count, -1))
    return Alignment(None, theta, family.grid_of(theta, 32))


def of_theta(theta, family="affine"):
    return Alignment(None, theta, FAMILIES[family].grid_of(theta, 32))


NOTHING = Known()


def loss(alignment, known=NOTHING, **weights):
    return float(transformer_loss(alignment, known, weights))


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_identity_no_term_costs_anything(name):
    alignment = aligned(name, *FAMILIES[name].identity_params)
    assert loss(alignment, outside=1) == loss(alignment, scale=1) == 0  # a margin lies between
    assert 0 <= loss(alignment, identity=1) < 1e-12  # a distance, to rounding
    assert 0 <= loss(alignment, Known(max_scale=1.0), scale=1) < 1e-12


def test_without_weights_there_is_no_term():
    far = aligned("affine", 9, 9, 9, 9, 9, 9)
    assert loss(far) == loss(far, outside=0, identity=0, pose=0) == 0  # no pose is needed, either


@pytest.mark.parametrize(("name", "params", "expected"), [
    # per axis: x - 1 beyond the edge, averaged over the picture, and then over both axes
    ("translation", [1.0, 0.0], 0.25 / 2), ("translation", [3.0, 0.0], 2 / 2),
    ("translation", [0.0, -3.0], 2 / 2), ("translation", [3.0, 3.0], 2),
    ("attention", [math.log(2), 0.0, 0.0], 0.25), ("attention", [-math.log(2), 0.5, 0.5], 0)])
def test_outside_is_the_mean_distance_beyond_the_edge(name, params, expected):
    assert loss(aligned(name, *params), outside=1) == pytest.approx(expected, abs=1e-12)
    assert loss(aligned(name, *params), outside=2.5) == pytest.approx(2.5 * expected, abs=1e-12)


@pytest.mark.parametrize(("name", "params", "expected"), [
    ("translation", [0.3, -0.4], 0.25),
    ("attention", [math.log(1.7), 0.0, 0.0], 0.7**2 * MEAN_SQUARE),
    ("rotation", [math.pi], 4 * MEAN_SQUARE),
    ("rotation", [0.5], (2 - 2 * math.cos(0.5)) * MEAN_SQUARE)])
def test_identity_is_the_mean_squared_distance_from_where_a_sample_belongs(name, params, expected):
    assert loss(aligned(name, *params), identity=1) == pytest.approx(expected, abs=1e-9)
    assert loss(aligned(name, *params), identity=2.5) == pytest.approx(2.5 * expected, abs=1e-9)


@pytest.mark.parametrize(("name", "params", "excess"), [
    ("attention", [math.log(2), 0.0, 0.0], math.log(2 / 1.5)),
    ("attention", [-math.log(2), 0.7, 0.0], math.log(2 / 1.5)),
    ("attention", [math.log(1.49), 0.0, 0.0], 0), ("attention", [-math.log(1.49), 0.0, 0.0], 0),
    ("similarity", [2.0, math.log(3), 0.3, 5.0], math.log(3 / 1.5)), ("rotation", [1.0], 0),
    ("translation", [5.0, 5.0], 0)])
def test_scale_is_the_squared_excess_of_the_log_scale(name, params, excess):
    known = Known(max_scale=1.5)
    assert loss(aligned(name, *params), known, scale=1) == pytest.approx(excess**2, abs=1e-9)
    # a wider margin takes off as much
    margin = max(0, excess - math.log(1.2))
    known = Known(max_scale=1.5 * 1.2)
    assert loss(aligned(name, *params), known, scale=2) == pytest.approx(2 * margin**2, abs=1e-9)


def test_scale_is_penalized_image_by_image_and_finite_at_a_point():
    # one image zoomed out and one zoomed in by as much do not cancel
    params = torch.tensor([[math.log(3), 0, 0], [-math.log(3), 0, 0]], dtype=torch.float64)
    both = of_theta(FAMILIES["attention"].theta(params))
    assert loss(both, Known(max_scale=1.0), scale=1) == pytest.approx(math.log(3) ** 2)
    assert 1 < loss(aligned("affine", 0, 0, 0, 0, 0, 0), scale=1) < 100


@pytest.mark.parametrize("name", ["rotation", "rts", "affine", "projective", "translation"])
def test_pose_is_zero_where_the_known_pose_is_undone_and_positive_otherwise(name):
    generator = torch.Generator().manual_seed(0)
    applied = distortions.sample_params(name, 20, generator).theta.double()
    family = "projective" if name == "projective" else "affine"
    good, known = of_theta(inverse(applied), family), Known(applied)
    assert loss(good, known, pose=1) == pytest.approx(0, abs=1e-9)
    still = aligned(family, *FAMILIES[family].identity_params, count=20)
    for bad in (of_theta(applied, family), still, of_theta(good.theta.flip(0), family)):
        assert loss(bad, known, pose=1) > 0.01


def test_pose_is_the_mean_squared_distance_left():
    turned = Known(aligned("rotation", 0.5, count=1).theta)
    expected = 3 * (2 - 2 * math.cos(0.7)) * MEAN_SQUARE
    assert loss(aligned("rotation", 0.2, count=1), turned, pose=3) == pytest.approx(expected)


def test_pose_of_bins_is_their_divergence_from_a_bell_around_the_true_angle():
    bins, generator = PoseBins("rotation", 36), torch.Generator().manual_seed(0)
    logits = torch.randn(5, 36, generator=generator)
    angles = torch.tensor([[0.0], [3.0], [-3.1], [1.234], [-0.7]])
    zero = 36 // 4 // 2  # the bin in whose middle an upright image is
    places = angles.numpy() * 36 / (2 * np.pi) + zero
    away = np.abs((np.arange(36) - places + 18) % 36 - 18)  # the short way round
    bell = np.exp(-0.5 * (away / TARGET_STD) ** 2)
    bell /= bell.sum(1, keepdims=True)
    probabilities = logits.double().softmax(1).numpy()
    expected = (bell * np.log(bell / probabilities)).sum(1).mean()
    alignment = Alignment(None, None, None, logits)
    known = Known(true_params=angles, pose_bins=bins)
    assert loss(alignment, known, pose=2) == pytest.approx(2 * expected, rel=1e-5)
    exact = alignment._replace(pose_logits=torch.from_numpy(np.log(bell)))
    assert loss(exact, known, pose=1) == pytest.approx(0, abs=1e-5)


def test_terms_add_up_and_a_row_of_ones_own_is_a_term(monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", lambda alignment, known: alignment.theta[:, 0, 2].mean())
    alignment = aligned("similarity", 0.5, 0.9, 0.3, -0.2, count=1)
    known = Known(torch.eye(2, 3, dtype=torch.float64)[None])
    weights = dict(outside=1, identity=2, scale=3, pose=4, mine=5)
    single = [loss(alignment, known, **{name: weight}) for name, weight in weights.items()]
    assert min(single) > 0 and single[-1] == pytest.approx(5 * 0.3)
    assert loss(alignment, known, **weights) == pytest.approx(sum(single))


@pytest.mark.parametrize(("given", "told"), [
    (lambda alignment, known: alignment.theta[:, 0, 2], r"\(1,\)"),  # of each image
    (lambda alignment, known: None, "None")])
def test_a_term_that_is_no_scalar_is_named(monkeypatch, given, told):
    monkeypatch.setitem(LOSSES, "mine", given)
    alignment = aligned("similarity", 0.5, 0.9, 0.3, -0.2, count=1)
    with pytest.raises(ValueError, match=rf"^LOSSES\['mine'\]: it gives {told}; must be a scalar"):
        loss(alignment, Known(), mine=1)


# ---- what they do to the localization network ----------------------------------------------------


BINS = dict(model="light", transform="rotation", pose_bins=36, pose_weight=1.0)
START = [0.3, 0.6, 0.7, 0.2]  # turned, zoomed out and shifted: every term costs something


def gradients(fields, name):
    """Of the term `name` alone, with respect to the localization network's parameters."""
    model = build_model(Config(device="cpu", **fields)).train()
    if not fields.get("pose_bins"):
        with torch.no_grad():
            model.transformer.localization.regressor[-1].bias.copy_(torch.tensor(START))
    applied = aligned("rotation", 0.4, count=4).theta.float()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    _, alignment = model(images, return_alignment=True)
    known = Known(applied, torch.full((4, 1), -0.4), model.transformer.pose_bins)
    term = LOSSES[name](alignment, known)
    parameters = list(model.transformer.localization.parameters())
    return torch.autograd.grad(term, parameters, allow_unused=True) if term.requires_grad else None


@pytest.mark.parametrize("name", LOSSES)
def test_every_term_teaches_the_localization_network(name):
    last = gradients(dict(transform="similarity"), name)[-1]  # the bias of its last layer
    assert last.isfinite().all() and last.abs().max() > 1e-3


def test_decoded_bins_pass_no_gradient_but_the_poses_own_term_teaches_them():
    assert all(gradients(BINS, name) is None for name in ("outside", "identity", "scale"))
    assert gradients(BINS, "pose")[-1].abs().max() > 1e-3


def measured(model, data, name):
    """A term's value on the training images."""
    with torch.no_grad():
        _, alignment = model(data.train.images, return_alignment=True)
    return loss(alignment, Known(data.train.poses), **{name: 1})


@pytest.mark.parametrize(("name", "start"), [
    ("outside", [0.0, 0.0, 0.7, 0.0]), ("identity", [0.6, 0.0, 0.0, 0.0]),
    ("scale", [0.0, 0.9, 0.0, 0.0]), ("pose", [0.0, 0.0, 0.6, 0.6])])
def test_each_term_brings_down_what_it_is_named_for(glyph_data, name, start):
    data, after = Data(glyph_data.train[:80], None, None, glyph_data.classes), {}
    for weight in (0, 3):
        config = Config(transform="similarity", epochs=4, batch_size=20, learning_rate=0.015,
                        device="cpu", precision="fp32", **{f"{name}_weight": weight})
        model = build_model(config)
        with torch.no_grad():
            model.transformer.localization.regressor[-1].bias.copy_(torch.tensor(start))
        before = measured(model, data, name)
        fit(model, data, config)
        after[weight] = measured(model, data, name)
    assert before > 0.02 and after[3] < 0.5 * before
    assert after[3] < 0.6 * after[0]  # it is not the cross-entropy that does it
