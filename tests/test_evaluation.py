"""evaluate equals a naive loop in float64, and test-time augmentation what it is said to be."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distorting import distort
from torch import nn

from stn_cifar import Config, Data, Split, build_model, evaluate
from stn_cifar.pose_bins import PoseBins
from stn_cifar.spatial_transformer import IdentityTransformer, SpatialTransformer
from stn_cifar.stn import STNClassifier
from stn_cifar.training.evaluation import (
    flip_shift_views,
    mirrored_views,
    rotated_views,
    top_k_poses,
    true_pose,
    where_unsure,
)


def telling(**fields):
    """An untrained model whose predictions differ far beyond rounding from image to image."""
    model, generator = build_model(Config(device="cpu", **fields)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.classifier.head[-1].weight.mul_(30)
        for p in model.transformer.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def metrics_of(logits, labels):
    """(loss, accuracy, confusion) of float64 logits (N, 10), by numpy."""
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    return losses.mean(), (logits.argmax(1) == labels).mean(), confusion


def agree(metrics, expected):
    loss, accuracy, confusion = expected
    assert metrics.loss == pytest.approx(loss, rel=1e-3) and metrics.accuracy == accuracy
    assert metrics.confusion.tolist() == confusion.tolist()
    assert metrics.confusion.dtype == torch.int64


@pytest.fixture(scope="module")
def model():
    return telling()


# ---- evaluate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1000, 130, 37, 1])
def test_evaluate_equals_a_naive_loop_in_float64(glyph_data, model, batch_size):
    transformer, classifier, logits = model.transformer, model.classifier.double(), []
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    with torch.no_grad():
        for image in glyph_data.test.images.numpy():
            x = torch.from_numpy((image / 255 - mean) / std)[None]
            theta = transformer.localization(x.float()).double().reshape(1, 2, 3)
            grid = F.affine_grid(theta, [1, 3, 32, 32], align_corners=False)
            warped = F.grid_sample(x, grid, align_corners=False)
            logits.append(classifier.eval()(warped)[0].numpy())
    classifier.float()
    expected = metrics_of(np.array(logits), glyph_data.test.labels.numpy())
    # not one prediction for all: a transposed matrix would show
    assert (expected[2].sum(0) > 0).sum() > 2
    agree(evaluate(model, glyph_data.test, batch_size), expected)


def test_rows_of_the_confusion_are_true_classes(glyph_data):
    model = build_model(Config(device="cpu"))
    with torch.no_grad():
        model.classifier.head[-1].weight.zero_()
        model.classifier.head[-1].bias.copy_(torch.eye(10)[3])  # class 3, whatever it is
    metrics = evaluate(model, glyph_data.test)
    counts = torch.bincount(glyph_data.test.labels, minlength=10)
    assert torch.equal(metrics.confusion, counts[:, None] * torch.eye(10, dtype=torch.int64)[3])
    assert metrics.accuracy == counts[3].item() / 130


@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_is_without_dropout_and_restores_the_mode_even_where_it_fails(glyph_data, mode):
    model, test = build_model(Config(device="cpu")).train(mode), glyph_data.test
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = evaluate(model, test)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {module.training for module in model.modules()} == {mode}
    with pytest.raises(ValueError, match=r"^images: shape \(130, 3, 28, 28\)"):
        evaluate(model, Split(test.images[..., :28, :28], test.labels))
    assert {module.training for module in model.modules()} == {mode}
    model.train()
    with torch.no_grad():  # what dropout would have done
        noisy = F.cross_entropy(model(test.images), test.labels).item()
    assert abs(noisy - first.loss) > 1e-4
    assert all(p.grad is None for p in model.parameters())


def test_images_of_other_classes_are_refused_in_words(glyph_data):
    train = glyph_data.train[:8]
    model = build_model(Config(device="cpu"), Data(Split(train.images, train.labels % 3)))
    with pytest.raises(ValueError, match=r"^labels: from 0 to 9, .* 3 classes"):
        evaluate(model, glyph_data.test)


# ---- flips and shifts ----------------------------------------------------------------------------


def six_views(image):
    """[(weight, view)] of an image (C, S, S), by numpy; each also mirrored."""
    size, views = image.shape[-1], []
    wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    for corner, weight in ((1, 1 / 4), (2, 1 / 8), (0, 1 / 8)):  # as it is, up left, down right
        view = wide[:, corner:corner + size, corner:corner + size]
        views += [(weight, view), (weight, view[:, :, ::-1])]
    return [(weight, torch.from_numpy(view.copy())) for weight, view in views]


@pytest.mark.parametrize("batch_size", [50, 37])
def test_flip_shift_views_equal_a_loop_over_images_and_views(glyph_data, model, batch_size):
    test, logits = glyph_data.test[:50], []
    with torch.no_grad():
        for image in test.images.numpy():
            weights, views = zip(*six_views(image), strict=True)
            out = model.eval()(torch.stack(views)).double().numpy()
            logits.append(np.average(out, axis=0, weights=weights))
    metrics = evaluate(model.train(), test, batch_size, predict=flip_shift_views)
    assert model.training  # restored
    agree(metrics, metrics_of(np.stack(logits), test.labels.numpy()))
    single = evaluate(model, test, batch_size)
    assert abs(single.loss - metrics.loss) > 0.01  # another measurement


@pytest.mark.parametrize("stn", [True, False])
def test_mirrored_views_are_of_what_the_transformer_hands_on(glyph_data, stn):
    model, batch = telling(stn=stn).eval(), glyph_data.test[:20]
    with torch.no_grad():
        logits, alignment = model(batch.images, return_alignment=True)
        mirror_image = torch.from_numpy(alignment.warped.numpy()[..., ::-1].copy())
        expected = (logits + model.classifier(mirror_image)) / 2
        torch.testing.assert_close(mirrored_views(model, batch), expected)
        assert not torch.allclose(expected, logits, atol=1e-3)
        other = Split(batch.images.flip(-1), batch.labels)
        if not stn:  # a mirrored image is the same to it
            torch.testing.assert_close(mirrored_views(model, other), expected)


def test_where_all_views_are_alike_they_change_nothing():
    """The negative control: images of one colour each."""
    model = telling(stn=False)
    levels = torch.arange(0, 256, 5, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    plain = Split(levels, torch.arange(len(levels)) % 10)
    views = evaluate(model, plain, predict=flip_shift_views)
    assert views.loss == pytest.approx(evaluate(model, plain).loss, rel=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.33, 1.0])
def test_only_the_least_certain_images_are_seen_again(glyph_data, model, share):
    def reversed_logits(model, batch):
        seen.append(batch.labels)
        return -model(batch.images)

    seen, batch = [], glyph_data.test[:50]
    with torch.no_grad():
        logits = model.eval()(batch.images)
        found = where_unsure(reversed_logits, share)(model, batch)
    order = logits.softmax(1).amax(1).argsort()
    unsure = order[:math.ceil(50 * share)]
    expected = logits.clone()
    expected[unsure] *= -1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sorted(torch.cat(seen).tolist()) == sorted(batch.labels[unsure].tolist())


def test_the_plain_pair_counts_as_much_as_both_shifted_pairs():
    """A "model" that returns four corners tells which views it got, and how each counts."""
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8).view(1, 1, 3, 3)

    def corners(view):
        assert view.dtype == torch.uint8 and view.shape == image.shape
        return view[:, 0, [0, 0, 2, 2], [0, 2, 0, 2]].double()

    plain, up_left, down_right = (np.array(view) for view in (
        [1, 3, 7, 9], [5, 6, 8, 9], [1, 2, 4, 5]))
    both = [view + view[[1, 0, 3, 2]] for view in (plain, up_left, down_right)]
    expected = 0.25 * both[0] + 0.125 * both[1] + 0.125 * both[2]
    batch = Split(image, torch.tensor([0]))
    assert flip_shift_views(corners, batch).tolist() == [expected.tolist()]


# ---- poses ---------------------------------------------------------------------------------------


class Compass(nn.Module):
    """Right on upright images only: which of four marks, right and left of the middle, is bright.

    Class 0: a spot at the top left; 1: at the top right. Turned by anything, it is at a loss.
    """

    def forward(self, images):
        grey = images.mean(1)
        return torch.stack([grey[:, 4:12, 8:12].mean((1, 2)), grey[:, 4:12, 20:24].mean((1, 2)),
                            grey[:, 20:28].mean((1, 2))], dim=1) * 3


def upright_marks(count=24):
    """Images whose class is where their bright spot is, and their labels."""
    labels, images = torch.arange(count) % 2, torch.full((count, 3, 32, 32), 60, dtype=torch.uint8)
    images[labels == 0, :, 5:11, 8:12] = 255
    images[labels == 1, :, 5:11, 20:24] = 255
    return images, labels


def turned_marks(name="rotation", count=24):
    images, labels = upright_marks(count)
    generator = torch.Generator().manual_seed(2)
    pictures, theta = distort(images, name, generator)
    return Split((pictures * 255).round().to(torch.uint8), labels, theta)


class Told(nn.Module):
    """A localization network that predicts the logits it is given, image by image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits[:len(images)]


def control(transform="rotation"):
    return STNClassifier(IdentityTransformer(transform), Compass(), (3, 32, 32), 3).eval()


@pytest.mark.parametrize(("distortion", "transform"), [
    ("rotation", "rotation"), ("rotation", "similarity"), ("similarity", "similarity")])
@pytest.mark.parametrize("stn", [True, False])
def test_the_true_pose_brings_distorted_images_back(distortion, transform, stn):
    split, model = turned_marks(distortion), control(transform)
    if stn:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3072, model.transformer.family.num_params))
        model.transformer = SpatialTransformer(network, transform)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    assert evaluate(model, split).accuracy < 0.7  # as they come
    assert evaluate(model, split, batch_size=7, predict=true_pose).accuracy == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    wrong = Split(split.images, split.labels, split.poses.flip(0))  # the negative control
    assert evaluate(model, wrong, predict=true_pose).accuracy < 0.9


def test_true_pose_needs_a_known_pose_and_a_family_with_an_angle():
    split = turned_marks()
    with pytest.raises(ValueError, match=r"^transform: 'affine'; .*'rotation', 'similarity'"):
        evaluate(control("affine"), split, predict=true_pose)
    with pytest.raises(ValueError, match=r"^true_pose: .*unknown"):
        evaluate(control(), Split(split.images, split.labels), predict=true_pose)


def probabilities(model, split, angle):
    """Of the classes, with every image turned back by `angle` (radians), float64."""
    with torch.no_grad():
        logits = model(split.images, torch.full((len(split), 1), angle))
    return logits.double().softmax(1).numpy()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_rotated_views_average_probabilities_over_even_turns(k):
    model, split = control(), turned_marks()
    mean = np.mean([probabilities(model, split, 2 * math.pi * i / k) for i in range(k)], axis=0)
    logits = rotated_views(k)(model, split).double()
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), mean, atol=1e-5)
    if k == 1:  # the image as it is
        assert evaluate(model, split, predict=rotated_views(1)).loss == pytest.approx(
            evaluate(model, split).loss, rel=1e-5)
    with pytest.raises(ValueError, match=r"^rotated_views: .*'affine'.*'rotation'"):
        evaluate(control("affine"), split, predict=rotated_views(2))


def test_top_k_poses_weigh_probabilities_by_how_likely_the_poses_are():
    """Two poses, 90 degrees apart, at 3 to 1: bins 4 (0 degrees) and 13 (90) of 36."""
    bins, split = PoseBins("rotation", 36), turned_marks()
    logits = torch.full((len(split), 36), -30.0)
    logits[:, 4], logits[:, 13] = math.log(0.75), math.log(0.25)
    model = control()
    model.transformer = SpatialTransformer(Told(logits), "rotation", pose_bins=bins,
                                           initialize=False)
    likeliest, second = (probabilities(model, split, angle) for angle in (0.0, math.pi / 2))
    for k, mean in ((1, likeliest), (2, 0.75 * likeliest + 0.25 * second)):
        out = top_k_poses(k)(model, split).double().softmax(1).detach().numpy()
        np.testing.assert_allclose(out, mean, atol=1e-4)
    assert np.abs(likeliest - second).max() > 0.05
    with torch.no_grad():
        single = model(split.images).double().softmax(1).numpy()
    np.testing.assert_allclose(single, likeliest, atol=1e-4)
    with pytest.raises(ValueError, match=r"^top_k_poses: 2 poses .*pose_bins"):
        evaluate(control(), split, predict=top_k_poses(2))


def test_top_k_poses_find_the_upright_one_among_two_that_are_as_likely():
    """A network that cannot tell up from down: each pose and its opposite, the wrong one first."""
    bins, split = PoseBins("rotation", 36), turned_marks()
    true = -torch.atan2(split.poses[:, 1, 0], split.poses[:, 0, 0])[:, None]
    middles = (torch.arange(36) - 4) * 2 * math.pi / 36
    near = [-20 * (1 - (middles - angle).cos()) for angle in (true, true + math.pi)]
    logits = torch.logaddexp(near[0] - 0.01, near[1])
    model = control()
    model.transformer = SpatialTransformer(Told(logits), "rotation", pose_bins=bins,
                                           initialize=False)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    accuracies = [evaluate(model, split, predict=top_k_poses(k)).accuracy for k in (1, 2)]
    assert accuracies[0] < 0.6 and accuracies[1] == 1
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("predict", [top_k_poses(2), rotated_views(2), true_pose])
def test_a_view_in_half_precision_stays_finite(predict):
    """A pose with no probability must not become the logarithm of zero."""
    logits = torch.full((24, 36), -1e4)
    logits[:, 4] = 0.0
    model = control()
    model.transformer = SpatialTransformer(Told(logits), "rotation", initialize=False,
                                           pose_bins=PoseBins("rotation", 36))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert math.isfinite(evaluate(model, turned_marks(), predict=predict).loss)


def test_labels_and_batches_that_are_none_are_refused(glyph_data):
    model, few = build_model(Config(device="cpu")), glyph_data.test[:4]
    with pytest.raises(ValueError, match=r"^labels: from -1 to 3, but the model tells 10 classes"):
        evaluate(model, Split(few.images, torch.arange(-1, 3) + torch.tensor([0, 0, 0, 1])))
    with pytest.raises(ValueError, match=r"^batch_size: 0; must be 1 or more"):
        evaluate(model, few, batch_size=0)
