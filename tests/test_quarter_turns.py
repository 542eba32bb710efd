"""Convolutions that share their weights over quarter turns: they turn along with the picture, exactly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_cifar import Config, build_model
from stn_cifar.classifier import light_features
from stn_cifar.quarter_turns import QuarterTurnConv2d, QuarterTurnNorm2d, seen_from_each_turn, split_turns


def turned(x, quarters=1):
    """Turned counter-clockwise on the screen."""
    return torch.rot90(x, quarters, (2, 3))


def maps_turned(maps, quarters):
    """What the maps of the turned picture must be: turned themselves, each set of channels giving way to the next."""
    sets = turned(maps, quarters).unflatten(1, (4, -1))
    return sets.roll(quarters, 1).flatten(1, 2)


def picture(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def features():
    torch.manual_seed(1)
    network = light_features(3, 0.5, turns=True).double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after some training
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return network


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_maps_turn_along_with_the_picture(features, quarters, training):
    features.train(training)
    maps, of_turned = features(picture()), features(turned(picture(), quarters))
    torch.testing.assert_close(of_turned, maps_turned(maps, quarters), rtol=0, atol=1e-10)
    assert not torch.allclose(of_turned, turned(maps, quarters), atol=1e-3)  # the sets do change places
    assert not torch.allclose(of_turned, maps_turned(maps, -quarters if quarters != 2 else 1), atol=1e-3)


def test_plain_features_do_not_turn_along():
    torch.manual_seed(1)
    network = light_features(3, 0.5).double().eval()
    pooled = network(picture()).amax((2, 3))
    assert not torch.allclose(network(turned(picture())).amax((2, 3)), pooled, atol=1e-3)


def test_the_first_layer_is_a_convolution_by_each_turned_filter():
    torch.manual_seed(0)
    layer = QuarterTurnConv2d(3, 2, 4, stride=2, padding=1, first=True).double()
    for r, maps in enumerate(layer(picture()).split(2, dim=1)):
        expected = F.conv2d(picture(), turned(layer.weight, r), stride=2, padding=1)
        torch.testing.assert_close(maps, expected)


def test_normalization_treats_the_four_sets_alike():
    norm, x = QuarterTurnNorm2d(2).double(), torch.randn(5, 8, 6, 7, dtype=torch.float64)
    pooled = x.unflatten(1, (4, 2))
    mean, variance = pooled.mean((0, 1, 3, 4)), pooled.var((0, 1, 3, 4), correction=0)
    expected = (pooled - mean.view(2, 1, 1)) / (variance.view(2, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(norm(x), expected.flatten(1, 2))
    assert norm.running_mean.shape == (2,)


def test_gradients_reach_the_shared_weights_by_finite_differences():
    torch.manual_seed(0)
    layer = QuarterTurnConv2d(1, 2, 3, padding=1).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(layer, {"weight": w}, x),
                                    (x, layer.weight))


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match="bias"):
        QuarterTurnConv2d(3, 2, 3, bias=True)


def test_seen_from_each_turn_is_what_the_turned_picture_gives(features):
    features.eval()
    seen = seen_from_each_turn(features(picture()).amax((2, 3)))
    assert seen.shape == (3, 4, 4 * 8)
    for r in range(4):
        of_turned = features(turned(picture(), r)).amax((2, 3))
        torch.testing.assert_close(seen[:, r], of_turned, rtol=0, atol=1e-10)
    assert split_turns(seen[:, 0]).shape == (3, 4, 8)


TAUGHT = dict(model="light", transform="rotation", pose_cells=36, pose_weight=1.0)


def test_the_localization_networks_cells_move_with_the_picture():
    model = build_model(Config(**TAUGHT, quarter_turns="localization")).eval().double()
    nn.init.normal_(model.localization.regressor.weight)
    answer, of_turned = (model.localization(x) for x in (picture(), turned(picture())))
    torch.testing.assert_close(of_turned, answer.roll(-9, 1), rtol=0, atol=1e-9)
    assert not torch.allclose(of_turned, answer.roll(9, 1), atol=1e-2)


def test_the_classifiers_logits_do_not_change_with_quarter_turns():
    fields = dict(model="light", stn=False)
    model, plain = (build_model(Config(**fields, quarter_turns=kind)).eval().double()
                    for kind in ("classifier", "none"))
    torch.testing.assert_close(model.classifier(turned(picture())), model.classifier(picture()), rtol=0, atol=1e-10)
    assert not torch.allclose(plain.classifier(turned(picture())), plain.classifier(picture()), atol=1e-3)


@pytest.mark.parametrize("kind", ["localization", "both", "none"])
def test_a_taught_models_logits_do_not_change_with_quarter_turns(kind):
    """The pose that it answers with turns along, so what the classifier sees is the same."""
    model, images = build_model(Config(**TAUGHT, quarter_turns=kind)).eval(), picture().sigmoid().float()
    nn.init.normal_(model.localization.regressor.weight)
    with torch.no_grad():
        logits, of_turned = model(images), model(turned(images))
    assert torch.allclose(of_turned, logits, rtol=0, atol=1e-4) == (kind != "none")
