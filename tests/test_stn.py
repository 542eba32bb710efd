"""The model: its size, its start at the identity, and that a picture moves the way theta says."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from stn_cifar.classifier import Residual
from stn_cifar.config import Config
from stn_cifar.stn import CIFAR10_MEAN, CIFAR10_STD, build_model
from stn_cifar.transforms import FAMILIES


def config(**fields):
    return Config(device="cpu", **fields)


def pictures(count=4, channels=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def fresh(**fields):
    return build_model(config(**fields)).eval()


def answering(params, **fields):
    """A model whose localization network answers `params` for every picture."""
    model = fresh(**fields)
    with torch.no_grad():
        model.localization.regressor[-1].bias.copy_(torch.tensor(params))
    return model


def looking(seed=0, **fields):
    """A model whose localization network answers something else for every picture, not far from the identity."""
    model = fresh(**fields)
    last = model.localization.regressor[-1]
    with torch.no_grad():
        last.weight.copy_(0.3 * torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def seen_by_classifier(model, images):
    """The classifier's input while `model` answers `images`, and the logits."""
    seen = []
    handle = model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        logits = model(images)
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0], logits


def normalized(images):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    return (images - mean) / std


def count(module):
    return sum(p.numel() for p in module.parameters())


# ---- size and shape -------------------------------------------------------------------------------------------------


def test_the_tutorial_has_39884_parameters_in_the_original_layers():
    model = build_model(Config.preset("tutorial", device="cpu"))
    assert count(model) == 39_884 and all(p.requires_grad for p in model.parameters())

    def layers(module):
        return [repr(layer).partition(", bias")[0] for layer in module.modules() if not list(layer.children())]

    pool, relu = repr(nn.MaxPool2d(2)), "ReLU()"
    flat = "Flatten(start_dim=1, end_dim=-1)"
    assert layers(model.localization) == [
        "Conv2d(3, 8, kernel_size=(7, 7), stride=(1, 1))", pool, relu,
        "Conv2d(8, 10, kernel_size=(5, 5), stride=(1, 1))", pool, relu, flat,
        "Linear(in_features=160, out_features=32", relu, "Linear(in_features=32, out_features=6"]
    assert layers(model.classifier) == [
        "Conv2d(3, 10, kernel_size=(5, 5), stride=(1, 1))", pool, relu,
        "Conv2d(10, 20, kernel_size=(5, 5), stride=(1, 1))", "Dropout2d(p=0.5, inplace=False)", pool, relu, flat,
        "Linear(in_features=500, out_features=50", relu, "Dropout(p=0.5, inplace=False)",
        "Linear(in_features=50, out_features=10"]


@pytest.mark.parametrize(("size", "channels", "localized", "classified"), [
    (32, 3, 160, 500), (28, 1, 90, 320), (64, 3, 1440, 3380), (33, 3, 160, 500)])
def test_other_sizes_and_channels_are_derived_and_train(size, channels, localized, classified):
    model = looking(image_size=size, channels=channels).train()
    assert model.localization.regressor[0].in_features == localized
    assert model.classifier.head[0].in_features == classified
    logits = model(pictures(5, channels, size))
    assert logits.shape == (5, 10)
    nn.functional.cross_entropy(logits, torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # to the first layer of each network something gets through
    assert model.localization.features[0].weight.grad.abs().sum() > 0
    assert model.classifier.features[0].weight.grad.abs().sum() > 0


def test_a_seed_starts_the_tutorial_as_it_always_did():
    """Its records stand for good: layer after layer, and one draw of a dropout while the features were measured."""
    model = build_model(config(seed=5))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = [nn.Conv2d(3, 10, 5), nn.Conv2d(10, 20, 5)]
        nn.functional.dropout2d(torch.zeros(1, 20, 10, 10))
        layers += [nn.Linear(500, 50), nn.Linear(50, 10), nn.Conv2d(3, 8, 7), nn.Conv2d(8, 10, 5), nn.Linear(160, 32)]
    found = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(found) == len(layers) + 1  # the last is set to the identity
    for layer, expected in zip(found, layers, strict=False):
        assert torch.equal(layer.weight, expected.weight) and torch.equal(layer.bias, expected.bias)


def test_the_compact_network_has_no_more_parameters_than_the_tutorials_and_a_limit():
    sizes = {name: count(build_model(Config.preset(name, device="cpu"))) for name in ("tutorial", "compact")}
    assert sizes["compact"] <= min(40_000, sizes["tutorial"])


NETWORKS = [dict(model="compact"), dict(model="strong", width=0.1), dict(model="light")]


@pytest.mark.parametrize("fields", [dict(), dict(num_classes=7), dict(channels=1), dict(image_size=20),
                                    dict(image_size=48, output_size=32), dict(output_size=17), dict(transform="tps"),
                                    dict(stn=False), dict(iterations=2)])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_other_networks_take_every_picture_and_return_its_logits(network, fields):
    images = pictures(3, fields.get("channels", 3), fields.get("image_size", 32))
    model = fresh(**network, **fields)
    logits = model(images)
    assert logits.shape == (3, fields.get("num_classes", 10)) and logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)  # it looks
    alone = torch.cat([model(image[None]) for image in images])  # nobody's answer depends on the rest of the batch
    torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [dict(model="tutorial"), *NETWORKS])
def test_each_model_has_the_classifier_of_its_name(fields):
    assert type(fresh(**fields).classifier).__name__ == f"{fields['model'].capitalize()}Classifier"


def test_a_residual_block_adds_to_what_comes_in():
    x = torch.linspace(-1, 1, 5)
    assert torch.equal(Residual(nn.ReLU(), nn.Threshold(0.6, 7.0))(x), x + torch.tensor([7.0, 7, 7, 7, 1]))


@pytest.mark.parametrize("network", NETWORKS)
def test_width_sets_the_channels_of_the_classifier_alone(network):
    narrow, wide = (fresh(**{**network, "width": width}) for width in (0.2, 0.4))
    assert 3 < count(wide.classifier) / count(narrow.classifier) < 4.5  # channels in times channels out
    assert count(wide.localization) == count(narrow.localization)
    assert fresh(**{**network, "width": 0.1})(pictures()).shape == (4, 10)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("field", ["image_size", "output_size"])
def test_a_picture_too_small_for_the_other_networks_is_refused_when_they_are_built(network, field):
    sizes = {}
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16):
        try:
            sizes[size] = build_model(config(**network, **{field: size}))
        except ValueError as error:
            assert str(error).startswith(f"image_size or output_size: {size} pixels are too few")
    assert 1 not in sizes and 16 in sizes and list(sizes) == [s for s in (*range(1, 9), 12, 16) if s >= min(sizes)]
    for size, model in sizes.items():  # and what was built works
        assert model.eval()(pictures(2, 3, size if field == "image_size" else 32)).isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_fresh_network_has_seen_nothing_yet_and_is_ready_to_be_trained(network):
    model = build_model(config(**network))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and all(module.training for module in model.modules())
    for layer in layers:
        assert not layer.running_mean.any() and (layer.running_var == 1).all() and not layer.num_batches_tracked


@pytest.mark.parametrize("network", NETWORKS)
def test_the_other_controls_have_the_same_classifier_from_the_same_start(network):
    with_stn, without = (build_model(config(**network, stn=stn)) for stn in (True, False))
    assert without.localization is None
    states = with_stn.classifier.state_dict(), without.classifier.state_dict()
    other = build_model(config(**network, stn=False, seed=1)).classifier.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in other)
    assert not all(torch.equal(states[1][key], other[key]) for key in other)


def test_number_of_classes_and_family_set_the_last_layers():
    assert fresh(num_classes=7)(pictures()).shape == (4, 7)
    for name, family in FAMILIES.items():
        assert fresh(transform=name).localization.regressor[-1].out_features == family.num_params


@pytest.mark.parametrize(("stn", "smallest"), [(True, 18), (False, 16)])
def test_an_image_too_small_for_the_layers_is_refused(stn, smallest):
    assert fresh(image_size=smallest, stn=stn)(pictures(size=smallest)).shape == (4, 10)
    for size in (smallest - 1, 5, 1):
        with pytest.raises(ValueError, match=rf"^image_size or output_size: {size} pixels are too few"):
            build_model(config(image_size=size, stn=stn))


# ---- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_model_shows_the_classifier_its_input(name, dtype):
    images = pictures() if dtype == torch.uint8 else pictures().to(dtype) / 255
    warped, theta = fresh(transform=name).transform(images)
    torch.testing.assert_close(warped, pictures() / 255, atol=1e-5, rtol=0)
    family = FAMILIES[name]
    torch.testing.assert_close(theta, family.theta(family.identity()[None]).expand_as(theta))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_networks_start_there_too_in_training_as_well(name, network, training):
    model = fresh(transform=name, **network).train(training)
    warped, theta = model.transform(pictures())
    torch.testing.assert_close(warped, pictures() / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(theta, model.family.theta(model.family.identity()[None]).expand_as(theta))


@pytest.mark.parametrize("fields", [dict(padding_mode="border"), dict(padding_mode="reflection"), dict(iterations=3),
                                    dict(interpolation="bicubic"), dict(image_size=45), dict(channels=1)])
def test_a_fresh_model_does_so_in_every_setting(fields):
    images = pictures(channels=fields.get("channels", 3), size=fields.get("image_size", 32))
    torch.testing.assert_close(fresh(**fields).transform(images)[0], images / 255, atol=1e-5, rtol=0)


def test_one_seed_gives_one_start_and_another_seed_another():
    first, again, other = (build_model(config(seed=seed)).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = [key for key in first if "regressor.2" not in key]  # the last layer is no one's choice
    assert len(random) == len(first) - 2
    assert not any(torch.equal(first[key], other[key]) for key in random)


def test_building_neither_reads_nor_moves_the_global_random_state():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_model(config()).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = build_model(config()).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_saved_weights_hold_what_is_learned_and_nothing_else():
    state = build_model(config()).state_dict()
    assert {key.split(".")[0] for key in state} == {"localization", "classifier"}


# ---- the right way --------------------------------------------------------------------------------------------------


def scipys_warp(images, theta):
    """The warp of `images` (B, C, S, S) in [0, 1] by a 2 x 3 theta, the mean colour outside; by scipy, in float64."""
    size = images.shape[-1]
    theta = np.asarray(theta, dtype=np.float64).reshape(2, 3)
    # from (x, y) in [-1, 1] to (row, column) in pixels: p = (u + 1) size / 2 - 1 / 2
    linear, shift = theta[::-1, 1::-1], theta[::-1, 2] * size / 2
    middle = (size - 1) / 2
    offset = middle + shift - linear @ np.array([middle, middle])
    warped = np.empty(images.shape)
    for i, image in enumerate(images.double().numpy()):
        for c, mean in enumerate(CIFAR10_MEAN):
            warped[i, c] = mean + ndimage.affine_transform(image[c] - mean, linear, offset, order=1,
                                                           mode="grid-constant", cval=0)
    return torch.from_numpy(warped).float()


@pytest.mark.parametrize("theta", [
    [1, 0, 0.25, 0, 1, 0], [1, 0, 0, 0, 1, -0.4], [0.866, -0.5, 0, 0.5, 0.866, 0], [1.5, 0, 0, 0, 1.5, 0],
    [0.9, -0.3, 0.2, 0.4, 1.3, -0.1]])
def test_a_known_theta_moves_the_picture_as_scipy_does(theta):
    warped, answered = answering([float(t) for t in theta]).transform(pictures())
    assert torch.equal(answered, torch.tensor(theta, dtype=torch.float32).view(1, 2, 3).expand(4, 2, 3))
    torch.testing.assert_close(warped, scipys_warp(pictures() / 255, theta), atol=1e-4, rtol=0)


def test_a_shift_to_the_right_in_theta_moves_the_content_left():
    # a quarter of a half-width of 16 pixels
    warped, _ = answering([0.25, 0.0], transform="translation").transform(pictures())
    torch.testing.assert_close(warped[..., :-4], pictures()[..., 4:] / 255, atol=1e-5, rtol=0)
    mean = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1)
    torch.testing.assert_close(warped[..., -4:], mean.expand(4, 3, 32, 4), atol=1e-6, rtol=0)  # outside: mean colour


def test_a_positive_quarter_turn_turns_the_content_counter_clockwise():
    warped, _ = answering([math.pi / 2], transform="rotation").transform(pictures())
    torch.testing.assert_close(warped, torch.rot90(pictures(), 1, (2, 3)) / 255, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_transform_shows_the_very_input_of_the_classifier(name, training):
    model = looking(transform=name).train(training)
    warped, theta = model.transform(pictures())
    assert not torch.allclose(warped, pictures() / 255, atol=0.05)  # it does something
    assert not torch.allclose(theta[0], theta[1], atol=1e-3)  # and not the same for every picture
    seen, logits = seen_by_classifier(model, pictures())
    torch.testing.assert_close(seen, normalized(warped), atol=1e-5, rtol=0)
    assert torch.equal(seen, model.align(model.normalize(pictures())).warped)  # which is what the trainer calls
    if not training:
        assert torch.equal(logits, model.classifier(seen))


def test_uint8_and_float_pictures_give_the_same_logits():
    model = looking()
    for images in (pictures() / 255, pictures().double() / 255):
        torch.testing.assert_close(model(images), model(pictures()), atol=1e-5, rtol=1e-5)


def test_pictures_are_normalized_once_by_the_mean_and_deviation_of_cifar10():
    seen, _ = seen_by_classifier(fresh(), pictures())
    torch.testing.assert_close(seen, normalized(pictures() / 255), atol=1e-5, rtol=0)
    seen, _ = seen_by_classifier(fresh(channels=1), pictures(channels=1))
    torch.testing.assert_close(seen, (pictures(channels=1) / 255 - 0.5) / 0.25, atol=1e-5, rtol=0)


def test_dropout_is_for_training_only():
    model = fresh()
    assert torch.equal(model(pictures()), model(pictures()))
    model.train()
    assert not torch.equal(model(pictures()), model(pictures()))


# ---- without a transformer ------------------------------------------------------------------------------------------


def test_the_control_has_the_same_classifier_and_no_transformer():
    model = fresh(stn=False)
    assert model.localization is None and not any("localization" in name for name, _ in model.named_parameters())
    assert count(model) == count(fresh().classifier) == 31_340
    warped, theta = model.transform(pictures())
    torch.testing.assert_close(warped, pictures() / 255, atol=1e-6, rtol=0)
    assert torch.equal(theta, torch.eye(2, 3).expand(4, 2, 3))
    seen, logits = seen_by_classifier(model, pictures())
    assert torch.equal(seen, model.normalize(pictures())) and torch.equal(logits, model.classifier(seen))


# ---- iterations, sizes, sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_matrix])
def test_two_iterations_sample_the_original_once_through_the_composed_theta(name):
    model = looking(transform=name, iterations=2)
    x = model.normalize(pictures())

    def square(theta):
        return theta if theta.shape[-2] == 3 else torch.cat([theta, torch.tensor([[[0.0, 0, 1]]]).expand(4, 1, 3)], 1)

    def warp(images, theta):
        grid = model.family.grid_of(theta if theta.shape[-2] == model_rows else theta[:, :2], 32)
        return nn.functional.grid_sample(images, grid, align_corners=False)

    model_rows = model.family.theta(model.family.identity()[None]).shape[-2]
    first = square(model.family.theta(model.localization(x)))
    once = warp(x, first)
    second = square(model.family.theta(model.localization(once)))
    composed = first @ second
    composed = composed / composed[:, 2:, 2:]
    warped, theta, *_ = model.align(x)
    torch.testing.assert_close(square(theta), composed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(warped, warp(x, composed), atol=1e-3, rtol=0)
    # neither the first step alone, nor the picture sampled twice, with its borders and blur piled up
    assert not torch.allclose(warped, once, atol=0.05)
    assert not torch.allclose(warped, warp(once, second), atol=0.05)


def test_each_iteration_adds_to_those_before():
    _, theta = answering([math.radians(20)], transform="rotation", iterations=3).transform(pictures())
    torch.testing.assert_close(torch.atan2(theta[:, 1, 0], theta[:, 0, 0]), torch.full((4,), math.radians(60)))


@pytest.mark.parametrize("stn", [True, False])
def test_output_size_is_what_the_classifier_gets(stn):
    model = fresh(output_size=20, stn=stn)
    assert model.classifier.head[0].in_features == 20 * 2 * 2
    seen, logits = seen_by_classifier(model, pictures())
    assert seen.shape == (4, 3, 20, 20) and logits.shape == (4, 10)
    warped, _ = model.transform(pictures())
    # between the pixels' centres: what bilinear interpolation to another size does
    expected = nn.functional.interpolate(pictures() / 255, size=20, mode="bilinear", align_corners=False)
    torch.testing.assert_close(warped, expected, atol=1e-5, rtol=0)


def test_supersampling_averages_a_finer_grid():
    model = answering([1.0, 0, 0, 0, 1.0, 0], supersample=2, output_size=16)
    warped, _, grid, _ = model.align(model.normalize(pictures()))
    assert grid.shape == (4, 32, 32, 2) and warped.shape == (4, 3, 16, 16)
    expected = nn.functional.avg_pool2d(model.normalize(pictures()), 2)  # every sample falls on a pixel's centre
    torch.testing.assert_close(warped, expected, atol=1e-4, rtol=0)


def test_padding_and_interpolation_are_the_configs():
    shift = [0.25, 0.0]
    edge = pictures()[..., -1:] / 255
    border, _ = answering(shift, transform="translation", padding_mode="border").transform(pictures())
    torch.testing.assert_close(border[..., -4:], edge.expand(4, 3, 32, 4), atol=1e-5, rtol=0)
    mirror, _ = answering(shift, transform="translation", padding_mode="reflection").transform(pictures())
    torch.testing.assert_close(mirror[..., -4:], pictures()[..., -4:].flip(3) / 255, atol=1e-5, rtol=0)
    bilinear, bicubic = (answering([0.03, 0.0], transform="translation", interpolation=kind).transform(pictures())[0]
                         for kind in ("bilinear", "bicubic"))
    assert not torch.allclose(bilinear, bicubic, atol=0.02)
    assert bicubic.min() >= 0 and bicubic.max() <= 1


@pytest.mark.parametrize("iterations", [1, 2])
def test_under_autocast_theta_and_grid_stay_float32(iterations):
    model = looking(iterations=iterations)
    answers = []
    model.localization.register_forward_hook(lambda module, args, output: answers.append(output))
    x = model.normalize(pictures())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped, theta, grid, _ = model.align(x)
        logits = model.classifier(warped)
    assert logits.dtype == torch.bfloat16 and all(a.dtype == torch.bfloat16 for a in answers)  # it was on
    assert theta.dtype == grid.dtype == warped.dtype == torch.float32
    # and what follows the network's answer is computed in float32, not merely converted to it
    if iterations == 1:
        assert torch.equal(theta, model.family.theta(answers[0].float()))
    assert torch.equal(grid, model.family.grid_of(theta, 32))
    assert torch.equal(warped, nn.functional.grid_sample(x, grid, align_corners=False))


# ---- bad pictures ---------------------------------------------------------------------------------------------------


BAD_IMAGES = {
    "above one": (pictures() / 128, r"from 0 to 1\.99.*\[0, 1\]"),
    "below zero": (pictures() / 255 - 0.5, r"from -0\.5 .*\[0, 1\]"),
    "normalized already": (normalized(pictures() / 255), r"normalizes by itself"),
    "not a number": (torch.full((1, 3, 32, 32), math.nan), "nan.*without NaN"),
    "one nan among many": (torch.where(torch.arange(32) == 7, math.nan, pictures() / 255), "without NaN"),
    "infinite": (torch.full((1, 3, 32, 32), math.inf), "inf"),
    "one channel": (pictures(channels=1), r"shape \(4, 1, 32, 32\).*\(B, 3, 32, 32\)"),
    "channels last": (pictures().permute(0, 2, 3, 1), r"shape \(4, 32, 32, 3\)"),
    "another size": (pictures(size=28), r"shape \(4, 3, 28, 28\)"),
    "not square": (pictures()[..., :30], r"shape \(4, 3, 32, 30\)"),
    "one image": (pictures()[0], r"shape \(3, 32, 32\)"),
    "five axes": (pictures()[None], r"shape \(1, 4, 3, 32, 32\)"),
    "int64": (pictures().long(), r"dtype torch\.int64.*uint8"),
    "bool": (pictures() > 127, r"dtype torch\.bool"),
    "numpy": (pictures().numpy(), "ndarray.*tensor"),
    "a list": ([[0.0]], "list.*tensor"),
}


@pytest.mark.parametrize("method", ["forward", "transform"])
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_pictures_are_refused_by_name(kind, method):
    images, message = BAD_IMAGES[kind]
    with pytest.raises(ValueError, match=rf"^images: .*{message}"):
        getattr(fresh(), method)(images)


def test_pictures_at_the_limits_are_taken():
    for images in (torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), 255).byte()):
        assert fresh()(images).isfinite().all()
    with pytest.raises(ValueError, match=r"^images: "):
        fresh()(torch.full((1, 3, 32, 32), math.nextafter(1, 2), dtype=torch.float64))
