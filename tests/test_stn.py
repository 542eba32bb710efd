"""STNClassifier and build_model: networks, sizes, the start, what the classifier sees."""

import copy
import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from stn_cifar import Config, SpatialTransformer, STNClassifier, build_model
from stn_cifar.classifier import CLASSIFIERS, Classifier, Residual
from stn_cifar.data import Data, Split
from stn_cifar.localization import LOCALIZATIONS, Localization
from stn_cifar.presets import PRESETS
from stn_cifar.stn import CIFAR10_MEAN, CIFAR10_STD
from stn_cifar.transforms import FAMILIES, Family

NETWORKS = [dict(model="separable"), dict(model="strong_p4", width=0.1),
            dict(model="strong", width=0.1), dict(model="light"),
            dict(model="p4"), dict(model="separable_p4")]


def images(count=4, channels=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def build(channels=3, size=32, classes=10, **fields):
    """A model for such images, from the tutorial's Config with `fields`."""
    split = Split(images(1, channels, size), torch.zeros(1, dtype=torch.int64))
    return build_model(Config(device="cpu", **fields), Data(split, classes=range(classes)))


def fresh(**fields):
    return build(**fields).eval()


def predicting(params, **fields):
    """A model whose localization network predicts `params` for every image."""
    model = fresh(**fields)
    model.transformer.localization.regressor[-1].bias.data = torch.tensor(params)
    return model


def last_layer(model):
    layers = [m for m in model.transformer.modules() if isinstance(m, nn.Linear)]
    return layers[-1]


def looking(scale=0.3, **fields):
    """A model that predicts something else for each image, not far from the identity."""
    model = fresh(**fields)
    nn.init.normal_(last_layer(model).weight, std=scale,
                    generator=torch.Generator().manual_seed(0))
    return model


def classifier_input(model, batch):
    """The classifier's input while `model` predicts, and the logits."""
    seen = []
    handle = model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        logits = model(batch)
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0], logits


def normalized(batch):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    return (batch - mean) / std


def count(module):
    return sum(p.numel() for p in module.parameters())


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# ---- size and shape ------------------------------------------------------------------------------


def test_the_tutorial_has_39884_parameters_in_the_original_layers():
    model = build_model(Config.preset("tutorial", device="cpu"))
    assert count(model) == 39_884 and all(p.requires_grad for p in model.parameters())

    def layers(module):
        return [repr(layer).partition(", bias")[0] for layer in module.modules()
                if not list(layer.children())]

    pool, relu, flat = repr(nn.MaxPool2d(2)), "ReLU()", "Flatten(start_dim=1, end_dim=-1)"
    assert layers(model.transformer.localization) == [
        "Conv2d(3, 8, kernel_size=(7, 7), stride=(1, 1))", pool, relu,
        "Conv2d(8, 10, kernel_size=(5, 5), stride=(1, 1))", pool, relu, flat,
        "Linear(in_features=160, out_features=32", relu, "Linear(in_features=32, out_features=6"]
    assert layers(model.classifier) == [
        "Conv2d(3, 10, kernel_size=(5, 5), stride=(1, 1))", pool, relu,
        "Conv2d(10, 20, kernel_size=(5, 5), stride=(1, 1))", "Dropout2d(p=0.5, inplace=False)",
        pool, relu, flat, "Linear(in_features=500, out_features=50", relu,
        "Dropout(p=0.5, inplace=False)", "Linear(in_features=50, out_features=10"]


def test_a_seed_starts_the_tutorial_as_it_always_did():
    """Its records stand: layer after layer, and one sample of a dropout in between."""
    model = build_model(Config(device="cpu", seed=5))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = [nn.Conv2d(3, 10, 5), nn.Conv2d(10, 20, 5)]
        F.dropout2d(torch.zeros(1, 20, 10, 10))
        layers += [nn.Linear(500, 50), nn.Linear(50, 10), nn.Conv2d(3, 8, 7), nn.Conv2d(8, 10, 5),
                   nn.Linear(160, 32)]
    # the transformer stands before the classifier, and is made after it; its last layer is set
    found = [layer for part in (model.classifier, model.transformer) for layer in part.modules()
             if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(found) == len(layers) + 1
    for layer, expected in zip(found, layers, strict=False):
        assert same(layer.state_dict(), expected.state_dict())


@pytest.mark.parametrize(("size", "channels", "localized", "classified"), [
    (32, 3, 160, 500), (28, 1, 90, 320), (64, 3, 1440, 3380), (33, 5, 160, 500)])
def test_other_sizes_and_channels_are_derived_and_train(size, channels, localized, classified):
    model = looking(size=size, channels=channels).train()
    localization = model.transformer.localization
    assert localization.regressor[0].in_features == localized
    assert model.classifier.head[0].in_features == classified
    logits = model(images(5, channels, size))
    F.cross_entropy(logits, torch.arange(5)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # to the first layer of each network something gets through
    for part in (localization, model.classifier):
        assert part.features[0].weight.grad.abs().max() > 1e-6


def test_the_compact_preset_has_no_more_parameters_than_the_tutorials_and_a_limit():
    sizes = [count(build_model(Config.preset(name, device="cpu"))) for name in ("compact",
                                                                                "tutorial")]
    assert sizes[0] <= min(40_000, sizes[1])


@pytest.mark.parametrize("fields", [
    dict(), dict(classes=7), dict(channels=1), dict(size=24), dict(size=48, output_size=32),
    dict(output_size=16), dict(transform="tps"), dict(stn=False), dict(iterations=2)])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_other_networks_take_every_image_and_return_its_logits(network, fields):
    batch = images(3, fields.get("channels", 3), fields.get("size", 32))
    model = fresh(**network, **fields)
    logits = model(batch)
    assert logits.shape == (3, fields.get("classes", 10)) and logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)  # it looks
    alone = torch.cat([model(image[None]) for image in batch])  # whatever else is in the batch
    torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-4)


def test_a_residual_block_adds_to_what_comes_in():
    x = torch.linspace(-1, 1, 5)
    block = Residual(nn.ReLU(), nn.Threshold(0.6, 7.0))
    assert torch.equal(block(x), x + torch.tensor([7.0, 7, 7, 7, 1]))


@pytest.mark.parametrize("network", NETWORKS)
def test_width_sets_the_channels_of_the_classifier_alone(network):
    narrow, wide = (fresh(**{**network, "width": width}) for width in (0.25, 0.5))
    # channels in times out; those of depthwise filters by themselves
    least = 2 if network["model"] == "separable" else 3
    assert least < count(wide.classifier) / count(narrow.classifier) < 4.5
    assert count(wide.transformer) == count(narrow.transformer)
    assert fresh(**{**network, "width": 0.1})(images()).shape == (4, 10)


@pytest.mark.parametrize("localization", ["light", "p4"])
def test_localization_width_sets_the_channels_of_the_localization_network_alone(localization):
    fields = dict(model="light", localization=localization, transform="rotation", pose_bins=36,
                  pose_weight=1.0)
    narrow, wide = (fresh(**fields, localization_width=width) for width in (1, 2))
    assert count(wide.transformer) / count(narrow.transformer) > 3
    assert count(wide.classifier) == count(narrow.classifier)


@pytest.mark.parametrize("network", [dict(), NETWORKS[0], NETWORKS[2]])
@pytest.mark.parametrize("field", ["size", "output_size"])
def test_an_image_too_small_for_the_networks_is_refused_when_they_are_built(network, field):
    sizes = {}
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 18, 32):
        try:
            sizes[size] = build(**network, **{field: size})
        except ValueError as error:
            assert str(error).startswith(f"image size: {size} x {size} pixels are too few")
            assert not sizes  # none smaller was taken
    assert 1 not in sizes and 32 in sizes
    for size, model in sizes.items():  # and what was built works
        batch = images(2, 3, size if field == "size" else 32)
        assert model.eval()(batch).isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_fresh_network_has_seen_nothing_yet_and_is_ready_to_be_trained(network):
    model = build(**network)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and all(module.training for module in model.modules())
    for layer in layers:
        assert not layer.running_mean.any() and (layer.running_var == 1).all()
        assert not layer.num_batches_tracked


# ---- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("fields", [
    *(dict(transform=name) for name in FAMILIES), dict(padding_mode="border"),
    dict(padding_mode="reflection"), dict(iterations=3), dict(size=45), dict(channels=1)])
def test_a_fresh_model_shows_the_classifier_its_input(fields, dtype):
    batch = images(channels=fields.get("channels", 3), size=fields.get("size", 32))
    given = batch if dtype == torch.uint8 else batch.to(dtype) / 255
    model = fresh(**fields)
    warped, theta = model.transform(given)
    torch.testing.assert_close(warped, batch / 255, atol=1e-6, rtol=0)
    family = model.transformer.family
    assert torch.equal(theta, family.theta(family.identity()[None]).expand_as(theta))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_networks_start_there_too_in_training_as_well(name, network, training):
    model = fresh(transform=name, **network).train(training)
    assert torch.equal(model.transformer(model.normalize(images())).warped,
                       model.normalize(images()))


def test_one_seed_gives_one_start_and_another_seed_another():
    first, again, other = (build(seed=seed).state_dict() for seed in (5, 5, 6))
    assert same(first, again)
    random = [key for key in first if "regressor.2" not in key]  # the last layer is no one's choice
    assert len(random) == len(first) - 2
    assert not any(torch.equal(first[key], other[key]) for key in random)


@pytest.mark.parametrize("network", [dict(), *NETWORKS])
def test_the_control_has_the_same_classifier_from_the_same_start(network):
    with_stn, without, other = (build(**network, **fields).classifier.state_dict() for fields in
                                (dict(), dict(stn=False), dict(stn=False, seed=1)))
    assert same(with_stn, without) and not same(without, other)


def test_building_neither_reads_nor_moves_the_global_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = build().state_dict()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert same(first, build().state_dict())


def test_two_threads_build_what_each_would_alone():
    alone = [build(model="light", seed=seed).state_dict() for seed in (0, 1)]
    built, start = {}, threading.Barrier(2)

    def work(seed):
        start.wait()
        built[seed] = [build(model="light", seed=seed).state_dict() for _ in range(10)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        assert all(same(state, alone[seed]) for state in built[seed])


def test_saved_weights_hold_what_is_learned_and_nothing_else():
    keys = build().state_dict().keys()
    assert {".".join(key.split(".")[:2]) for key in keys} == {
        "transformer.localization", "classifier.features", "classifier.head"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_copy_is_the_same_model_and_no_part_of_the_first(preset):
    config = Config.preset(preset, device="cpu", **({"width": 0.1} if preset == "strong" else {}))
    model = build_model(config).eval()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images()), model(images())) and twin.config == model.config == config
    nn.init.zeros_(next(twin.classifier.parameters()))
    assert not same(twin.state_dict(), model.state_dict())
    twin.load_state_dict(model.state_dict())
    assert same(twin.state_dict(), model.state_dict())


# ---- the right way -------------------------------------------------------------------------------


def scipys_warp(batch, theta):
    """`batch` (B, C, S, S) in [0, 1] warped by a 2 x 3 theta, the mean colour outside; by scipy."""
    size = batch.shape[-1]
    theta, middle = np.asarray(theta, dtype=np.float64).reshape(2, 3), (size - 1) / 2
    # from (x, y) in [-1, 1] to (row, column) in pixels: p = (u + 1) size / 2 - 1 / 2
    linear, shift = theta[::-1, 1::-1], theta[::-1, 2] * size / 2
    offset = middle + shift - linear @ np.array([middle, middle])
    warped = np.empty(batch.shape)
    for i, image in enumerate(batch.double().numpy()):
        for c, mean in enumerate(CIFAR10_MEAN):
            warped[i, c] = mean + ndimage.affine_transform(
                image[c] - mean, linear, offset, order=1, mode="grid-constant", cval=0)
    return torch.from_numpy(warped).float()


@pytest.mark.parametrize("theta", [
    [1.0, 0, 0.25, 0, 1, 0], [1.0, 0, 0, 0, 1, -0.4], [0.866, -0.5, 0, 0.5, 0.866, 0],
    [1.5, 0, 0, 0, 1.5, 0], [0.9, -0.3, 0.2, 0.4, 1.3, -0.1]])
def test_a_known_theta_moves_the_image_as_scipy_does(theta):
    warped, found = predicting(theta).transform(images())
    assert torch.equal(found, torch.tensor(theta).view(1, 2, 3).expand(4, 2, 3))
    torch.testing.assert_close(warped, scipys_warp(images() / 255, theta), atol=1e-4, rtol=0)


def test_a_shift_to_the_right_in_theta_moves_the_content_left():
    # a quarter of a half-width of 16 pixels
    warped, _ = predicting([0.25, 0.0], transform="translation").transform(images())
    torch.testing.assert_close(warped[..., :-4], images()[..., 4:] / 255, atol=1e-5, rtol=0)
    mean = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand(4, 3, 32, 4)  # what lies outside
    torch.testing.assert_close(warped[..., -4:], mean, atol=1e-6, rtol=0)


def test_a_positive_quarter_turn_turns_the_content_counter_clockwise():
    warped, _ = predicting([math.pi / 2], transform="rotation").transform(images())
    torch.testing.assert_close(warped, torch.rot90(images(), 1, (2, 3)) / 255, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_transform_shows_the_very_input_of_the_classifier(name, training):
    model = looking(transform=name).train(training)
    warped, theta = model.transform(images())
    assert not torch.allclose(warped, images() / 255, atol=0.05)  # it does something
    assert not torch.allclose(theta[0], theta[1], atol=1e-3)  # and not the same for every image
    seen, logits = classifier_input(model, images())
    torch.testing.assert_close(seen, normalized(warped), atol=1e-5, rtol=0)
    if not training:
        assert torch.equal(logits, model.classifier(seen))
        again, alignment = model(images(), return_alignment=True)
        assert torch.equal(again, logits) and torch.equal(alignment.warped, seen)
        assert torch.equal(alignment.theta, theta)


def test_known_poses_go_to_the_transformer():
    model, true = looking(transform="rotation"), torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    _, alignment = model(images(), true, return_alignment=True)
    assert torch.equal(alignment.theta, FAMILIES["rotation"].theta(true))
    _, alignment = model(images(), true, teacher_forcing=0.0, return_alignment=True)
    assert torch.equal(alignment.theta, model.transform(images())[1])


def test_uint8_and_float_images_give_the_same_logits():
    model = looking()
    for batch in (images() / 255, images().double() / 255):
        torch.testing.assert_close(model(batch), model(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_normalized_once_by_cifar10s_mean_and_deviation(channels):
    """Of other than three channels, by a middle grey."""
    batch = images(channels=channels)
    seen, _ = classifier_input(fresh(channels=channels), batch)
    expected = normalized(batch / 255) if channels == 3 else (batch / 255 - 0.5) / 0.25
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_dropout_is_for_training_only():
    model = fresh()
    assert torch.equal(model(images()), model(images()))
    model.train()
    assert not torch.equal(model(images()), model(images()))


def test_without_a_transformer_the_classifier_sees_the_images():
    model = fresh(stn=False)
    assert count(model) == count(fresh().classifier) == 31_340 and not count(model.transformer)
    warped, theta = model.transform(images())
    torch.testing.assert_close(warped, images() / 255, atol=1e-6, rtol=0)
    assert torch.equal(theta, torch.eye(2, 3).expand(4, 2, 3))
    seen, logits = classifier_input(model, images())
    assert torch.equal(seen, model.normalize(images()))
    assert torch.equal(logits, model.classifier(seen))


@pytest.mark.parametrize("stn", [True, False])
def test_output_size_is_what_the_classifier_gets(stn):
    model = fresh(output_size=20, stn=stn)
    assert model.classifier.head[0].in_features == 20 * 2 * 2
    warped, _ = model.transform(images())
    expected = F.interpolate(images() / 255, size=20, mode="bilinear", align_corners=False)
    torch.testing.assert_close(warped, expected, atol=1e-5, rtol=0)


def test_padding_and_supersampling_are_the_configs():
    shift, edge = [0.25, 0.0], images()[..., -4:] / 255
    for padding, expected in dict(border=edge[..., -1:].expand(4, 3, 32, 4),
                                  reflection=edge.flip(3)).items():
        model = predicting(shift, transform="translation", padding_mode=padding)
        torch.testing.assert_close(model.transform(images())[0][..., -4:], expected, atol=1e-5,
                                   rtol=0)
    warped, _ = fresh(supersample=2, output_size=16).transform(images())
    torch.testing.assert_close(warped, F.avg_pool2d(images() / 255, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fields", [
    dict(), dict(iterations=2), dict(transform="tps", model="separable"),
    dict(model="strong", width=0.1, transform="projective"),
    dict(model="p4", localization="p4", transform="rotation", pose_bins=36, pose_weight=1.0),
    dict(stn=False), dict(stn=False, output_size=20)])
def test_a_model_in_another_precision_predicts_the_same(fields, dtype):
    model = looking(0.03, **fields) if fields.get("stn", True) else fresh(**fields)
    logits, alignment = model(images(), return_alignment=True)
    tolerance = 1e-5 if dtype == torch.float64 else 0.02 if dtype == torch.float16 else 0.1
    converted, fine = copy.deepcopy(model).to(dtype), torch.promote_types(dtype, torch.float32)
    for batch in (images(), images() / 255, (images() / 255).to(dtype)):
        found, other = converted(batch, return_alignment=True)
        assert found.dtype == other.warped.dtype == dtype
        assert "pose_bins" in fields or other.theta.dtype == other.grid.dtype == fine
        assert (found - logits).abs().max() < tolerance * max(1, logits.abs().max())
        assert (other.theta - alignment.theta).abs().max() < tolerance


# ---- one row is enough ---------------------------------------------------------------------------


def test_a_new_family_is_a_row(monkeypatch):
    """A horizontal shift alone, through the very grid of the affine families."""
    shift = Family("shift_x", 1, (0,), lambda params: FAMILIES["translation"].to_theta(
        F.pad(params, (0, 1))), FAMILIES["affine"].to_grid)
    with pytest.raises(ValueError, match=r"^transform: 'shift_x' is unknown"):
        Config.preset("compact", transform="shift_x")
    monkeypatch.setitem(FAMILIES, "shift_x", shift)
    model = build_model(Config.preset("compact", transform="shift_x", iterations=2, device="cpu"))
    model.eval()
    torch.testing.assert_close(model.transform(images())[0], images() / 255, atol=1e-6, rtol=0)
    last_layer(model).bias.data.fill_(0.125)  # twice: four pixels
    warped, _ = model.transform(images())
    torch.testing.assert_close(warped[..., :-4], images()[..., 4:] / 255, atol=1e-5, rtol=0)


class Mean(nn.Module):
    """Every output from the mean colour alone."""

    def __init__(self, channels, size, outputs, width):
        super().__init__()
        self.layer = nn.Linear(channels, outputs)

    def forward(self, images):
        return self.layer(images.mean((2, 3)))


@pytest.mark.parametrize(("table", "row", "fields"), [
    (LOCALIZATIONS, Localization(Mean), dict(localization="mean", localization_width=2)),
    (CLASSIFIERS, Classifier(Mean, "light"), dict(model="mean", width=2))])
def test_a_new_network_is_a_row(monkeypatch, table, row, fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))}: 'mean' is unknown"):
        Config.preset("tutorial", **fields)
    monkeypatch.setitem(table, "mean", row)
    model = build_model(Config.preset("tutorial", transform="tps", device="cpu", **fields)).eval()
    part = model.classifier if "model" in fields else model.transformer.localization
    assert type(part) is Mean and model(images()).shape == (4, 10)
    torch.testing.assert_close(model.transform(images())[0], images() / 255, atol=1e-6, rtol=0)


def test_a_row_with_an_unknown_localization_network_is_named(monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, "mean", Classifier(Mean, "lite"))
    with pytest.raises(ValueError, match=r"^CLASSIFIERS\['mean'\]\.localization: 'lite' is "
                                         r"unknown; did you mean 'light'"):
        build_model(Config(model="mean"))


def test_it_is_made_of_any_transformer_and_classifier():
    localization = nn.Sequential(nn.Flatten(), nn.Linear(2 * 12 * 20, 4))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(2 * 12 * 20, 3))
    model = STNClassifier(SpatialTransformer(localization, "similarity"), classifier,
                          input_shape=(2, 12, 20), num_classes=3)
    batch = torch.rand(5, 2, 12, 20, generator=torch.Generator().manual_seed(0))
    assert model(batch).shape == (5, 3) and model.config is None
    torch.testing.assert_close(model(batch), classifier((batch - 0.5) / 0.25), atol=1e-5, rtol=0)


# ---- bad images ----------------------------------------------------------------------------------


BAD_IMAGES = {
    "above one": (images() / 128, r"from 0 to 1\.99.*\[0, 1\]"),
    "below zero": (images() / 255 - 0.5, r"from -0\.5 .*\[0, 1\]"),
    "normalized already": (normalized(images() / 255), r"normalizes by itself"),
    "not a number": (torch.full((1, 3, 32, 32), math.nan), "nan.*without NaN"),
    "one nan among many": (torch.where(torch.arange(32) == 7, math.nan, images() / 255),
                           "without NaN"),
    "infinite": (torch.full((1, 3, 32, 32), math.inf), "inf"),
    "one channel": (images(channels=1), r"shape \(4, 1, 32, 32\).*\(B, 3, 32, 32\)"),
    "channels last": (images().permute(0, 2, 3, 1), r"shape \(4, 32, 32, 3\)"),
    "another size": (images(size=28), r"shape \(4, 3, 28, 28\)"),
    "not square": (images()[..., :30], r"shape \(4, 3, 32, 30\)"),
    "one image": (images()[0], r"shape \(3, 32, 32\)"),
    "five axes": (images()[None], r"shape \(1, 4, 3, 32, 32\)"),
    "int64": (images().long(), r"dtype torch\.int64.*uint8"),
    "bool": (images() > 127, r"dtype torch\.bool"),
}


@pytest.mark.parametrize("method", ["forward", "transform"])
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_refused_by_name(kind, method):
    batch, message = BAD_IMAGES[kind]
    with pytest.raises(ValueError, match=rf"^images: .*{message}"):
        getattr(fresh(), method)(batch)


def test_images_at_the_limits_are_taken():
    for batch in (torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32),
                  torch.full((1, 3, 32, 32), 255).byte(), images()[:0]):
        assert fresh()(batch).isfinite().all()
    with pytest.raises(ValueError, match=r"^images: "):
        fresh()(torch.full((1, 3, 32, 32), math.nextafter(1, 2), dtype=torch.float64))


def test_in_training_values_are_not_looked_at():
    """A GPU would wait for it at every step; `fit` has checked the data."""
    assert build()(images() / 255 - 0.5).isfinite().all()
