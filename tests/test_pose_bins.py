"""A distribution over poses: decoding and loss; the models that predict it, and their training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_cifar import Config, build_model, distortions, fit, matrices, transforms
from stn_cifar.data import Data, Split
from stn_cifar.pose_bins import PoseBins, true_params

POSED = dict(model="light", transform="rotation", pose_bins=36, pose_weight=1.0)
FULL, QUARTER = 2 * math.pi, math.pi / 2
ANGLES = st.floats(-math.pi, math.pi)
BINS = st.sampled_from([12, 16, 36, 72])


def rotation(angle):
    """theta (1, 2, 3) of a rotation applied to an image."""
    return transforms.FAMILIES["rotation"].theta(torch.tensor([[float(angle)]]))


def apart(a, b, span=FULL):
    return abs(math.remainder(float(a) - float(b), span))


def sure_of(angle, bins=36, span=FULL):
    """Logits (1, bins) of a network that is sure of one angle; 0 lies in bin number bins // 8."""
    width = span / bins
    distance = [apart((k - bins // 8) * width, angle, span) / width for k in range(bins)]
    return torch.tensor([[-0.5 * (d / 1.3) ** 2 for d in distance]])


def test_logits_of_another_number_are_refused():
    bins = PoseBins("rotation", 36)
    for call in (bins.decode, lambda logits: bins.loss(logits, torch.zeros(2, 1))):
        with pytest.raises(ValueError, match=r"^pose logits: shape \(2, 35\); must be \(B, 36\)"):
            call(torch.zeros(2, 35))


# ---- decoding ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(ANGLES, BINS, st.sampled_from([FULL, QUARTER]))
def test_a_sure_prediction_is_read_back(angle, bins, span):
    found = PoseBins("rotation", bins, span).decode(sure_of(angle, bins, span))
    assert apart(found.params[0, 0], angle, span) < 0.25 * span / bins  # finer than the bins
    assert 0.9 < found.probability.item() <= 1 + 1e-6


@pytest.mark.parametrize("bins", [12, 24, 36])
def test_a_sure_prediction_has_no_second_pose(bins):
    first, second = PoseBins("rotation", bins).top_k(sure_of(1.0, bins), 2)
    assert first.probability.item() > 0.9 and second.probability.item() < 0.02


def test_the_second_pose_is_the_other_way_up():
    both = 0.7 * sure_of(0.3).softmax(1) + 0.3 * sure_of(0.3 + math.pi).softmax(1)
    first, second, third = PoseBins("rotation", 36).top_k(both.log(), 3)
    assert apart(first.params, 0.3) < 0.05 and apart(second.params, 0.3 + math.pi) < 0.05
    assert first.probability.item() == pytest.approx(0.7, abs=0.07)
    assert second.probability.item() == pytest.approx(0.3, abs=0.03)
    assert third.probability.item() < 0.01 and third.params.isfinite().all()


def test_decoding_passes_no_gradient():
    assert not PoseBins("rotation", 36).decode(sure_of(1.0).requires_grad_()).params.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(transform=st.sampled_from(["rotation", "similarity"]), bins=BINS,
       span=st.sampled_from([FULL, QUARTER]))
def test_the_initial_logits_are_the_identitys(dtype, transform, bins, span):
    pose_bins = PoseBins(transform, bins, span)
    logits = pose_bins.initial_logits()
    assert logits.shape == (pose_bins.num_logits,) == (bins * len(pose_bins.axes),)
    assert pose_bins.decode(logits[None].to(dtype)).params.abs().max() < 1e-6


@pytest.mark.parametrize(("arguments", "message"), [
    (("affine", 36), r"^transform: 'affine'.*'rotation', 'similarity'"),
    (("rotation", 8), "^pose_bins: 8; .*multiple of 4 from 12"),
    (("rotation", 37), "^pose_bins: 37; "),
])
def test_bad_bins_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoseBins(*arguments)


# ---- the loss, and the truth ---------------------------------------------------------------------


@settings(max_examples=40)
@given(ANGLES)
def test_the_loss_is_least_at_the_pose_that_undoes_what_was_applied(angle):
    bins, true = PoseBins("rotation", 36), true_params(rotation(angle), "rotation")
    at_truth = bins.loss(sure_of(-angle), true).item()
    assert at_truth == pytest.approx(0, abs=1e-3)
    for off in (-0.5, 0.3, math.pi):
        assert bins.loss(sure_of(-angle + off), true).item() > at_truth + 0.1
    assert bins.loss(sure_of(angle), true).item() > 0.1 or apart(angle, -angle) < 0.2


@settings(max_examples=40)
@given(ANGLES)
def test_modulo_90_degrees_a_quarter_turn_costs_nothing(angle):
    bins = PoseBins("rotation", 12, QUARTER)
    losses = [bins.loss(sure_of(-angle, 12, QUARTER), true_params(rotation(angle + turn),
                                                                  "rotation")).item()
              for turn in (0, math.pi / 2, math.pi, math.pi / 4)]
    assert losses[:3] == pytest.approx([0, 0, 0], abs=1e-3) and losses[3] > 0.1


def test_descent_on_the_loss_leads_to_the_pose_of_a_similarity():
    applied = distortions.sample_params("similarity", 20, torch.Generator().manual_seed(0)).theta
    bins, true = PoseBins("similarity", 36), true_params(applied, "similarity")
    logits = torch.zeros(20, bins.num_logits, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        bins.loss(logits, true).backward()
        optimizer.step()
    predicted = transforms.FAMILIES["similarity"].theta(bins.decode(logits).params)
    left = matrices.decompose(matrices.compose(applied, predicted))
    assert left.angle.abs().max() < math.radians(2)
    assert left.scale.log().abs().max() < 0.02
    assert max(left.shift_x.abs().max(), left.shift_y.abs().max()) < 0.03


@pytest.mark.parametrize("name", ["rotation", "similarity", "affine", "projective"])
def test_the_true_parameters_are_those_of_the_inverse(name):
    applied = distortions.sample_params(name, 20, torch.Generator().manual_seed(0)).theta
    pose = matrices.decompose(matrices.inverse(applied))
    expected = torch.stack([pose.angle, pose.scale.log(), pose.shift_x, pose.shift_y], dim=1)
    found = true_params(applied, "similarity")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(true_params(applied, "rotation"), found[:, :1])


# ---- in the model --------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    dict(), dict(localization="p4"), dict(model="p4", localization="p4_mod90"),
    dict(transform="similarity"), dict(model="tutorial"), dict(model="separable")])
def test_a_fresh_model_returns_its_images(fields, photos):
    warped, theta = build_model(Config(**POSED | fields)).eval().transform(photos)
    torch.testing.assert_close(theta, torch.eye(2, 3).expand(6, -1, -1), rtol=0, atol=1e-7)
    assert (warped - photos / 255).abs().max() < 1e-5


@pytest.fixture
def mixed():
    """A model that predicts another pose for each image."""
    model = build_model(Config(**POSED)).eval()
    torch.nn.init.normal_(model.transformer.localization.regressor.weight, std=0.5,
                          generator=torch.Generator().manual_seed(0))
    return model


def test_the_class_loss_stays_out_of_the_localization_network(photos, mixed):
    logits, alignment = mixed.train()(photos, return_alignment=True)
    logits.sum().backward()
    assert all(p.grad is None for p in mixed.transformer.parameters())
    true = true_params(rotation(0.5).expand(6, -1, -1), "rotation")
    mixed.transformer.pose_bins.loss(alignment.pose_logits, true).backward()
    assert all(p.grad is not None for p in mixed.transformer.parameters())


# ---- in training ---------------------------------------------------------------------------------


def forced_shares(photos, **fields):
    """Share of images, in each training step, that were warped by their true pose."""
    split = Split(photos.repeat(4, 1, 1, 1), torch.arange(24) % 10)
    few = Data(split, None, split[:6], tuple("abcdefghij"), "photos")
    config = Config.preset("taught", **{"batch_size": 8, "precision": "fp32", "device": "cpu",
                                        "width": 0.5, "localization_width": 0.5, **fields})
    model, shares = build_model(config), []
    forward = model.forward

    def watched(images, true_params=None, *args, **kwargs):
        output = forward(images, true_params, *args, **kwargs)
        if true_params is not None:
            undone = model.transformer.family.theta(true_params)
            near = (output[1].theta - undone).abs().amax((1, 2)) < 1e-6
            shares.append(near.float().mean())
        return output

    model.forward = watched
    fit(model, few, config)
    assert len(shares) == 3 * config.epochs
    return torch.stack(shares)


def test_teacher_forcing_begins_with_every_true_pose_and_is_annealed_to_none(photos):
    shares = forced_shares(photos, epochs=10)
    assert shares[0] == 1
    assert shares[:10].mean() > 0.7 and shares[-10:].mean() < 0.3
    assert shares.mean() == pytest.approx(0.5, abs=0.15)


def test_without_teacher_forcing_no_pose_is_given_away(photos):
    assert forced_shares(photos, epochs=2, teacher_forcing=0.0).max() == 0
