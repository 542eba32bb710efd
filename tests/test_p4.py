"""p4 group convolutions: their maps turn along with the image, exactly (Cohen & Welling 2016)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_cifar import Config, build_model
from stn_cifar.classifier import CLASSIFIERS, light_features
from stn_cifar.p4 import P4BatchNorm2d, P4Conv2d, split_turns, turned_copies

POSED = dict(transform="rotation", pose_bins=36, pose_weight=1.0)


def turned(x, quarters=1):
    """Turned counter-clockwise on the screen."""
    return torch.rot90(x, quarters, (2, 3))


def maps_turned(maps, quarters):
    """What the turned image's maps must be: turned, each set of channels giving way to the next."""
    return turned(maps, quarters).unflatten(1, (4, -1)).roll(quarters, 1).flatten(1, 2)


def images(size=32, count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def seeded(make, *args, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make(*args, **kwargs).double()


@pytest.fixture
def features():
    """light_features with statistics and scales as after some training."""
    network = seeded(light_features, 3, 0.5, p4=True)
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_var):
                nn.init.uniform_(values, 0.5, 2, generator=generator)
            for values in (layer.bias, layer.running_mean):
                nn.init.normal_(values, generator=generator)
    return network


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_maps_turn_along_with_the_image(features, quarters, training):
    features.train(training)
    maps, of_turned = features(images()), features(turned(images(), quarters))
    torch.testing.assert_close(of_turned, maps_turned(maps, quarters), rtol=0, atol=1e-10)
    # neither without the sets changing places, nor with their changing the other way
    assert not torch.allclose(of_turned, turned(maps, quarters), atol=1e-3)
    other = maps_turned(maps, -quarters if quarters != 2 else 1)
    assert not torch.allclose(of_turned, other, atol=1e-3)


def test_plain_features_do_not_turn_along():
    network = seeded(light_features, 3, 0.5).eval()
    pooled, of_turned = (network(x).amax((2, 3)) for x in (images(), turned(images())))
    assert not torch.allclose(of_turned, pooled, atol=1e-3)


def test_the_first_layer_is_a_convolution_by_each_turned_filter():
    layer = seeded(P4Conv2d, 3, 2, 4, stride=2, padding=1, first=True)
    assert layer.bias is None  # normalization follows
    for r, maps in enumerate(layer(images()).split(2, dim=1)):
        expected = F.conv2d(images(), turned(layer.weight, r), stride=2, padding=1)
        torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("count", [1, 2])
def test_depthwise_each_set_is_filtered_by_its_turned_filters(count):
    layer = seeded(P4Conv2d, count, count, 3, padding=1, depthwise=True)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 4 * count, 6, 6, generator=generator, dtype=torch.float64)
    for k, maps in enumerate(layer(x).unbind(1)):  # of set r and channel c: k = count * r + c
        weight = layer.weight[k % count:k % count + 1]
        expected = F.conv2d(x[:, k:k + 1], turned(weight, k // count), padding=1)
        torch.testing.assert_close(maps, expected[:, 0])
    torch.testing.assert_close(layer(maps_turned(x, 1)), maps_turned(layer(x), 1))


def test_depthwise_reads_maps_and_gives_as_many():
    for refused in (dict(inputs=3, outputs=3, first=True), dict(inputs=2, outputs=4)):
        with pytest.raises(ValueError, match="must read maps, and give as many"):
            P4Conv2d(**refused, kernel_size=3, depthwise=True)


def test_normalization_treats_the_four_sets_alike():
    norm, generator = P4BatchNorm2d(2).double(), torch.Generator().manual_seed(3)
    x = torch.randn(5, 8, 6, 7, generator=generator, dtype=torch.float64)
    sets = x.unflatten(1, (4, 2))
    mean, variance = sets.mean((0, 1, 3, 4)), sets.var((0, 1, 3, 4), correction=0)
    expected = (sets - mean.view(2, 1, 1)) / (variance.view(2, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(norm(x), expected.flatten(1, 2))
    assert norm.running_mean.shape == (2,)


def test_gradients_reach_the_shared_weights_by_finite_differences():
    layer = seeded(P4Conv2d, 1, 2, 3, padding=1)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    call = torch.func.functional_call
    assert torch.autograd.gradcheck(lambda x, w: call(layer, {"weight": w}, x),
                                    (x.requires_grad_(), layer.weight))


def test_turned_copies_are_what_the_turned_images_give(features):
    features.eval()
    copies = turned_copies(features(images()).amax((2, 3)))
    assert copies.shape == (3, 4, 4 * 8) and split_turns(copies[:, 0]).shape == (3, 4, 8)
    for r in range(4):
        of_turned = features(turned(images(), r)).amax((2, 3))
        torch.testing.assert_close(copies[:, r], of_turned, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("localization", "model", "moved"), [
    ("p4", "light", -9), ("p4_mod90", "p4", 0)])
def test_the_localization_networks_logits_move_with_the_image(localization, model, moved):
    """By a quarter of the bins; of bins modulo 90 degrees, not at all."""
    config = Config(**POSED, localization=localization, model=model)
    network = build_model(config).transformer.localization.eval().double()
    nn.init.normal_(network.regressor.weight, generator=torch.Generator().manual_seed(0))
    logits, of_turned = network(images()), network(turned(images()))
    torch.testing.assert_close(of_turned, logits.roll(moved, 1), rtol=0, atol=1e-9)
    assert not torch.allclose(of_turned, logits.roll(9, 1), atol=1e-2)


@pytest.mark.parametrize(("model", "same"), [
    (name, row.p4_invariant) for name, row in CLASSIFIERS.items() if row.scalable])
def test_the_p4_classifiers_logits_do_not_change_with_quarter_turns(model, same):
    config = Config(model=model, stn=False, width=0.5)
    # normalized by the batch: without statistics a fresh network tells no picture from another
    classifier = build_model(config).classifier.train().double()
    logits, of_turned = classifier(images()), classifier(turned(images()))
    change = (of_turned - logits).abs().max() / logits.std(dim=0).mean()
    assert change < 1e-9 if same else change > 1e-2


@pytest.mark.parametrize(("fields", "same"), [
    (dict(localization="p4", model="light"), True), (dict(localization="p4", model="p4"), True),
    (dict(localization="p4_mod90", model="p4"), True), (dict(model="light"), False)])
def test_a_whole_models_logits_do_not_change_with_quarter_turns(fields, same):
    """The pose that it predicts turns along, so what the classifier sees is the same."""
    model, x = build_model(Config(**POSED, **fields)).eval(), images().sigmoid().float()
    nn.init.normal_(model.transformer.localization.regressor.weight,
                    generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, of_turned = model(x), model(turned(x))
    assert torch.allclose(of_turned, logits, rtol=0, atol=1e-4) == same


@pytest.mark.parametrize(("fields", "size"), [(dict(model="p4", stn=False), 20),
                                              (dict(model="p4", output_size=28), 32)])
def test_sizes_on_which_it_would_not_hold_are_refused(fields, size):
    from stn_cifar.data import Data, Split

    split = Split(torch.zeros(2, 3, size, size, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(ValueError, match=r"^image size: .* multiple of 8"):
        build_model(Config(**fields), Data(split))


@pytest.mark.parametrize("first, side", [(True, 4), (False, 3)])
def test_the_filters_gradient_is_that_of_turning_and_rolling(first, side):
    """Against rot90 and roll themselves, and autograd's way back through them."""
    layer = seeded(P4Conv2d, 2, 3, side, first, padding=1)
    x = torch.randn(2, 2 if first else 8, 6, 6, dtype=torch.float64,
                    generator=torch.Generator().manual_seed(3))
    weights = [turned(layer.weight, r) for r in range(4)]
    if not first:
        weights = [w.unflatten(1, (4, -1)).roll(r, 1).flatten(1, 2) for r, w in enumerate(weights)]
    expected, found = F.conv2d(x, torch.cat(weights), padding=1), layer(x)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(found.shape, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(4))
    gradients = [torch.autograd.grad(out, layer.weight, pull)[0] for out in (expected, found)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().min() > 0
