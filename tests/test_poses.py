"""A distribution over poses: its cells, what is read off, what teaches it, and the model that answers with it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stn_cifar import Config, build_model, distortions, evaluate, fit, poses, transforms
from stn_cifar.data import Data, Split

TAUGHT = dict(model="light", transform="rotation", pose_cells=36, pose_weight=1.0)
ANGLES = st.floats(-math.pi, math.pi)


def turn(angle):
    """theta (1, 2, 3) of a rotation applied to a picture."""
    return transforms.FAMILIES["rotation"].theta(torch.tensor([[float(angle)]]))


def divergence(logits, applied, transform="rotation"):
    return poses.loss(logits, poses.undoing(applied, transform), transform)


def apart(a, b):
    return abs(math.remainder(float(a) - float(b), 2 * math.pi))


def sure_of(angle, cells=36, transform="rotation"):
    """Logits of a network that is sure of one turn."""
    logits = poses.start(transform, cells)[None].clone() * 0
    logits[:, :cells] = poses._bell(poses.ANGLE, torch.tensor([float(angle)]), cells).clamp_min(1e-9).log()
    return logits


@given(ANGLES, st.sampled_from([12, 16, 36, 72]))
def test_a_sure_answer_is_read_back(angle, cells):
    (found,) = poses.hypotheses(sure_of(angle, cells), "rotation")
    assert apart(found.params[0, 0], angle) < 0.25 * 2 * math.pi / cells  # finer than the cells
    assert 0.9 < found.probability.item() <= 1 + 1e-6


@given(ANGLES)
def test_the_loss_is_least_at_the_pose_that_undoes_what_was_applied(angle):
    at_truth = divergence(sure_of(-angle), turn(angle)).item()
    assert at_truth == pytest.approx(0, abs=1e-3)
    for off in (-0.5, 0.3, math.pi):
        assert divergence(sure_of(-angle + off), turn(angle)).item() > at_truth + 0.1
    assert divergence(sure_of(angle), turn(angle)).item() > 0.1 or apart(angle, -angle) < 0.2


def test_descent_on_the_loss_leads_to_the_pose_of_a_similarity():
    generator = torch.Generator().manual_seed(0)
    applied = distortions.draw("similarity", 20, generator).theta
    logits = torch.zeros(20, poses.num_logits("similarity", 36), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        divergence(logits, applied, "similarity").backward()
        optimizer.step()
    (found,) = poses.hypotheses(logits.detach(), "similarity")
    answered = transforms.FAMILIES["similarity"].theta(found.params)
    left = transforms.decompose(transforms.compose(applied, answered))
    assert left.angle.abs().max() < math.radians(2)
    assert left.scale.log().abs().max() < 0.02
    assert max(left.shift_x.abs().max(), left.shift_y.abs().max()) < 0.03


@pytest.mark.parametrize("cells", [12, 24, 36])
def test_a_sure_answer_has_no_second_hypothesis(cells):
    first, second = poses.hypotheses(sure_of(1.0, cells), "rotation", 2)
    assert first.probability.item() > 0.9 and second.probability.item() < 0.02


@pytest.mark.parametrize("name", ["rotation", "similarity", "affine", "projective"])
def test_what_undoes_a_pose_is_the_inverse_taken_apart(name):
    applied = distortions.draw(name, 20, torch.Generator().manual_seed(0)).theta
    true = transforms.decompose(transforms.inverse(applied))
    expected = torch.stack([true.angle, true.scale.log(), true.shift_x, true.shift_y], dim=1)
    torch.testing.assert_close(poses.undoing(applied, "similarity"), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(poses.undoing(applied, "rotation"), poses.undoing(applied, "similarity")[:, :1])


def test_the_second_hypothesis_is_the_other_way_up():
    both = sure_of(0.3).exp() * 0.7 + sure_of(0.3 + math.pi).exp() * 0.3
    first, second, third = poses.hypotheses(both.log(), "rotation", 3)
    assert apart(first.params, 0.3) < 0.05 and apart(second.params, 0.3 + math.pi) < 0.05
    assert first.probability.item() == pytest.approx(0.7, abs=0.07)
    assert second.probability.item() == pytest.approx(0.3, abs=0.03)
    assert third.probability.item() < 0.01 and third.params.isfinite().all()


def test_reading_is_done_without_gradients():
    logits = sure_of(1.0).requires_grad_()
    (found,) = poses.hypotheses(logits, "rotation")
    assert not found.params.requires_grad


@pytest.mark.parametrize("transform", ["rotation", "similarity"])
@pytest.mark.parametrize("cells", [12, 16, 36])
def test_a_fresh_answer_is_the_identity(transform, cells):
    (found,) = poses.hypotheses(poses.start(transform, cells)[None], transform)
    assert found.params.abs().max() < 1e-6


# ---- in the model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [dict(), dict(quarter_turns="localization"), dict(transform="similarity"),
                                    dict(shared_layers=2), dict(model="tutorial"), dict(model="compact")])
def test_a_fresh_model_returns_its_images(fields, photos):
    model = build_model(Config(**TAUGHT | fields)).eval()
    warped, theta = model.transform(photos)
    torch.testing.assert_close(theta, torch.eye(2, 3).expand(6, -1, -1), rtol=0, atol=1e-7)
    assert (warped - photos.float() / 255).abs().max() < 1e-5


def mixed(model):
    """A model whose pose answers differ from image to image."""
    torch.nn.init.normal_(model.localization.regressor.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return model.eval()


def test_logits_over_several_poses_are_the_weighed_mean_of_probabilities(photos):
    model = mixed(build_model(Config(**TAUGHT)))
    with torch.no_grad():
        images = model.normalize(photos)
        found = poses.hypotheses(model.localization(images), "rotation", 3)
        looks = [model.classifier(model._warp(images, model.family.theta(params))[0]).softmax(1) for params, _ in found]
        weights = torch.stack([probability for _, probability in found])
        expected = (weights[..., None] * torch.stack(looks)).sum(0) / weights.sum(0)[:, None]
        torch.testing.assert_close(model(photos, 3).exp(), expected, rtol=1e-4, atol=1e-5)
        assert (model(photos, 3).softmax(1) - model(photos).softmax(1)).abs().max() > 1e-3  # or it proved nothing


@pytest.mark.parametrize("transform", transforms.FAMILIES)
def test_without_a_transformer_poses_are_turns_all_the_way_round(photos, transform):
    model = build_model(Config(model="light", stn=False, transform=transform)).eval()
    with torch.no_grad():
        turned = [model(torch.rot90(photos, k, (2, 3))).softmax(1) for k in range(4)]
        torch.testing.assert_close(model(photos, 4).exp(), sum(turned) / 4, rtol=1e-4, atol=1e-5)


def test_several_poses_are_refused_where_there_is_one(photos):
    with pytest.raises(ValueError, match=r"hypotheses: 2.*pose_cells"):
        build_model(Config(model="light"))(photos, 2)
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match=f"hypotheses: {wrong}"):
            build_model(Config(model="light"))(photos, wrong)
    split = Split(photos, torch.zeros(len(photos), dtype=torch.int64))
    with pytest.raises(ValueError, match="hypotheses: 2 with averaged"):
        evaluate(build_model(Config(model="light", stn=False)), split, averaged=True, hypotheses=2)


def test_the_class_loss_stays_out_of_the_localization_network(photos):
    model = mixed(build_model(Config(**TAUGHT))).train()
    logits, alignment = model.learn(model.normalize(photos))
    logits.sum().backward()
    assert all(p.grad is None for p in model.localization.parameters())
    divergence(alignment.answer, turn(0.5).expand(len(photos), -1, -1)).backward()
    assert all(p.grad is not None for p in model.localization.parameters())


def test_the_control_that_is_told_the_pose_warps_nothing(photos):
    model = build_model(Config(**TAUGHT, stn=False, pose_head=True)).eval()
    images = model.normalize(photos)
    logits, alignment = model.learn(images)
    assert torch.equal(alignment.warped, images) and alignment.answer.shape == (len(photos), 36)
    torch.testing.assert_close(logits, model(photos))
    divergence(alignment.answer, turn(0.5).expand(len(photos), -1, -1)).backward()
    assert model.classifier.features[0][0].weight.grad.abs().sum() > 0  # the extra task teaches the classifier


def test_shared_layers_are_the_same_ones_and_learn_once(photos):
    from stn_cifar.steps import make_optimizer

    settings = Config(**TAUGHT, shared_layers=2, localization_lr_scale=0.1)
    model = build_model(settings)
    first, other = model.classifier.features, model.localization.features
    assert first[0] is other[0] and first[1] is other[1] and first[2] is not other[2]
    groups = make_optimizer(model, settings).param_groups
    taught = [p for group in groups for p in group["params"]]
    assert len(taught) == len(set(taught)) == len(list(model.parameters()))
    rate = next(group["lr"] for group in groups if any(p is first[0][0].weight for p in group["params"]))
    assert rate == settings.learning_rate


# ---- in training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(photos):
    """Two epochs of taught training on a few photos, by settings; gives the pose that each step warped by."""
    def run(monkeypatch, **fields):
        few = Data(Split(photos.repeat(4, 1, 1, 1), torch.arange(24) % 10), None,
                   Split(photos, torch.arange(6)), tuple("abcdefghij"), "photos")
        settings = Config.preset("taught", **{"epochs": 2, "batch_size": 8, "precision": "fp32", "width": 0.5,
                                              "localization_width": 0.5, **fields})
        model, warped = build_model(settings), []
        learn = model.learn

        def watch(images, told):
            logits, alignment = learn(images, told)
            undone = transforms.FAMILIES["rotation"].theta(told[0])
            warped.append((alignment.theta - undone).abs().amax((1, 2)) < 1e-6)  # where the true pose was undone
            return logits, alignment

        monkeypatch.setattr(model, "learn", watch)
        fit(model, few, settings)
        return torch.stack(warped).float().mean(1)

    return run


def test_the_curriculum_begins_with_every_true_pose_and_ends_with_few(run, monkeypatch):
    shares = run(monkeypatch, epochs=10)
    assert shares[0] == 1
    assert shares[:10].mean() > 0.7 and shares[-10:].mean() < 0.3
    assert shares.mean() == pytest.approx(0.5, abs=0.15)


def test_without_a_curriculum_no_pose_is_given_away(run, monkeypatch):
    assert run(monkeypatch, pose_curriculum=0.0).max() == 0


def test_told_poses_are_taken_where_they_are_told(photos):
    model = mixed(build_model(Config(**TAUGHT)))
    images, which = model.normalize(photos), torch.tensor([True, False, True, False, False, True])
    told = torch.linspace(-1, 1, 6)[:, None], which
    theta, alone = model.align(images, told).theta, model.align(images).theta
    torch.testing.assert_close(theta[which], transforms.FAMILIES["rotation"].theta(told[0])[which])
    assert torch.equal(theta[~which], alone[~which])
