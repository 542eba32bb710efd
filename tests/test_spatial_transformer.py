"""SpatialTransformer alone: any network, any images, no Config."""

import copy
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from stn_cifar import SpatialTransformer, STNClassifier
from stn_cifar.matrices import inverse
from stn_cifar.pose_bins import PoseBins
from stn_cifar.spatial_transformer import IdentityTransformer, initialize_output
from stn_cifar.transforms import FAMILIES, identity_grid

MATRIX = [name for name, family in FAMILIES.items() if family.is_matrix]
SHAPES = [(3, 32, 32), (1, 40, 40), (3, 33, 47), (5, 16, 64)]


def rng(seed):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=rng(seed)).to(dtype)


def network(outputs, channels=3):
    """A localization network for images of any size, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(channels, 4, 5, stride=2), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, outputs))


def looking(transform="affine", channels=3, reach=0.3, outputs=None, **options):
    """A transformer whose theta differs from image to image, around the identity."""
    outputs = outputs or FAMILIES[transform].num_params
    transformer = SpatialTransformer(network(outputs, channels), transform, **options)
    nn.init.normal_(transformer.localization[-1].weight, std=reach, generator=rng(1))
    return transformer.eval()


def without_network(transform):
    """A transformer for `warp` and `unwarp` alone, which need no prediction."""
    return SpatialTransformer(nn.Identity(), transform, initialize=False)


def predicting(params, transform, **options):
    """A transformer that predicts `params` for every image."""
    transformer = SpatialTransformer(network(len(params)), transform, **options)
    transformer.localization[-1].bias.data = torch.tensor(params)
    return transformer.eval().requires_grad_(False)


class Unused(nn.Module):
    """A localization network that must not be asked."""

    def __init__(self, outputs):
        super().__init__()
        self.last = nn.Linear(1, outputs)

    def forward(self, images):
        raise AssertionError("asked for a prediction")


# ---- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_starts_at_the_exact_identity_whatever_the_images(name, interpolation, shape):
    images = torch.randn(2, *shape, generator=rng(0))
    images[..., ::3] *= 1e-8  # dark beside bright: what differs little may differ much in relation
    transformer = SpatialTransformer(network(FAMILIES[name].num_params, shape[0]), name,
                                     interpolation=interpolation)
    warped, theta, grid, pose_logits = transformer(images)
    family = FAMILIES[name]
    assert torch.equal(theta, family.theta(family.identity()[None]).expand_as(theta))
    assert torch.equal(grid, identity_grid(grid).expand_as(grid))
    assert torch.equal(warped, images) and pose_logits is None


@pytest.mark.parametrize("options", [
    dict(padding_mode="border"), dict(padding_mode="reflection"), dict(iterations=3)])
@pytest.mark.parametrize("make", [
    lambda n: nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, n)),
    lambda n: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, n, 1), nn.Flatten()),
    lambda n: nn.Sequential(nn.Flatten(), nn.LazyLinear(n, bias=False), nn.BatchNorm1d(n),
                            nn.Dropout(), nn.Linear(n, n)),
])
def test_it_starts_there_whatever_the_network_and_options(make, options):
    images = rand(4, 3, 32, 32)
    assert torch.equal(SpatialTransformer(make(6), **options)(images).warped, images)


def test_a_start_at_the_identity_still_learns():
    """The images are handed on as they are, but gradients are those of sampling."""
    for size in ((32, 32), (24, 40)):
        transformer, images = SpatialTransformer(network(6)), rand(2, 3, *size)
        warped, _, grid, _ = transformer(images)
        plain, weights = F.grid_sample(images, grid, align_corners=False), rand(2, 3, *size, seed=5)
        bias = transformer.localization[-1].bias
        expected, found = (torch.autograd.grad((x * weights).sum(), bias, retain_graph=True)[0]
                           for x in (plain, warped))
        assert expected.abs().min() > 0.1
        torch.testing.assert_close(found, expected)


def no_bias(n):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, n, bias=False))


@pytest.mark.parametrize(("make", "message"), [
    (lambda n: nn.Sequential(nn.Flatten(), nn.ReLU()), r"a bias of 6.* nn\.Linear\(\.\.\., 6\)"),
    (lambda n: network(n + 1), "a bias of 6 values"),
    (lambda n: nn.Sequential(nn.Flatten(), nn.LazyLinear(n)), "run on a batch if lazy"),
    (no_bias, "must have a bias"),
])
def test_a_network_that_cannot_start_there_is_refused_in_words(make, message):
    with pytest.raises(ValueError, match=f"^localization: .*{message}"):
        SpatialTransformer(make(6))


def test_a_trained_network_is_left_alone_where_that_is_asked():
    trained = network(6)
    before = copy.deepcopy(trained.state_dict())
    transformer = SpatialTransformer(trained, initialize=False)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    images = rand(2, 3, 32, 32)
    assert torch.equal(transformer(images).theta, trained(images).reshape(2, 2, 3))
    SpatialTransformer(no_bias(6), initialize=False)
    SpatialTransformer(trained)  # otherwise it is not
    assert not trained[-1].weight.any()


def test_a_network_may_start_itself():
    class Own(nn.Module):
        def initialize_output(self, values):
            self.values = values

        def forward(self, images):
            return self.values.expand(len(images), -1)

    network = Own()
    initialize_output(network, torch.tensor([1.0, 2]))
    assert network.values.tolist() == [1, 2]
    images = rand(1, 3, 8, 8)
    assert torch.equal(SpatialTransformer(network)(images).warped, images)


@pytest.mark.parametrize(("options", "message"), [
    (dict(transform="afine"), "^transform: 'afine' is unknown.*'affine'"),
    (dict(padding_mode="wrap"), "^padding_mode: 'wrap' .*'zeros'"),
    (dict(interpolation="cubic"), "^interpolation: 'cubic' .*'bicubic'"),
    (dict(iterations=2, transform="tps"), "^iterations: 2 .*matrix family"),
    (dict(iterations=2, transform="rotation", pose_bins=PoseBins("rotation", 12)),
     "^iterations: 2 .*pose_bins"),
    (dict(pose_bins=PoseBins("rotation", 12)), "^pose_bins: .*'rotation'.*'affine'"),
])
def test_bad_arguments_are_refused_by_name(options, message):
    outputs = FAMILIES.get(options.get("transform"), FAMILIES["affine"]).num_params
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(network(outputs), **options)


@pytest.mark.parametrize(("options", "message"), [
    (dict(iterations=0), "iterations: 0; must be an int, 1 or more"),
    (dict(iterations=1.5), "iterations: 1.5; must be an int"),
    (dict(supersample=0), "supersample: 0; must be an int, 1 or more"),
    (dict(supersample=2.0), "supersample: 2.0; must be an int"),
    (dict(pose_bins=36), r"pose_bins: 36; must be a PoseBins, such as"),
    (dict(output_size=0), "size: 0; must be 1 or more pixels"),
    (dict(output_size=(8, 8, 8)), r"size: \(8, 8, 8\); must be 1 or more pixels"),
    (dict(output_size="16"), "size: '16'; must be 1 or more pixels"),
    (dict(output_size=8.5), "size: 8.5; must be 1 or more pixels"),
    (dict(output_size=(8, -1)), r"size: \(8, -1\); must be 1 or more pixels")])
def test_numbers_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SpatialTransformer(network(6), **options)


def test_images_poses_and_maps_that_do_not_fit_are_refused_by_name():
    transformer, images = SpatialTransformer(network(6)), rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^images: dtype torch.uint8; .*images / 255"):
        transformer((255 * images).to(torch.uint8))
    with pytest.raises(ValueError, match=r"^true_params: 3 for 2 images; must be one row for each"):
        transformer(images, torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"^theta: shape \(2, 6\); must be \(B, 2, 3\)"):
        transformer.warp(images, torch.zeros(2, 6))
    theta = transformer(images).theta
    for resize in (transformer.warp, transformer.unwarp):
        with pytest.raises(ValueError, match=r"^size: 0; must be 1 or more pixels"):
            resize(images, theta, size=0)


def test_a_computed_weight_is_not_passed_over_for_the_layer_before():
    """Weight normalization computes the last layer's: zeroed, the one before would break theta."""
    last = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    look = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), last)
    before = look[1].weight.clone()
    with pytest.raises(ValueError, match=r"^localization: to start at the identity, .*it is Param"):
        SpatialTransformer(look)
    assert torch.equal(look[1].weight, before)


def test_another_kind_of_argument_or_output_is_refused_in_words():
    for given in (None, torch.sin):
        with pytest.raises(ValueError, match=r"^localization: a .*; must be an nn.Module"):
            SpatialTransformer(given)
    with pytest.raises(ValueError, match=r"^images: dtype float32; must be a floating point T"):
        SpatialTransformer(network(6))(np.zeros((2, 3, 8, 8), np.float32))

    class Two(nn.Module):
        def forward(self, images):
            return images, images

    with pytest.raises(ValueError, match=r"^localization: it gives a tuple; must be a Tensor"):
        SpatialTransformer(Two(), initialize=False)(rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"^transformer: a NoneType; must be an nn.Module"):
        STNClassifier(None, nn.Identity(), (3, 8, 8), 2)
    with pytest.raises(ValueError, match=r"^input_shape: \(8, 8\), num_classes: 2; must be three"):
        STNClassifier(IdentityTransformer(), nn.Identity(), (8, 8), 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_saved_whole_and_sent_to_other_processes(name):
    transformer = SpatialTransformer(network(FAMILIES[name].num_params), name)
    file, images = io.BytesIO(), rand(2, 3, 8, 8)
    torch.save(transformer, file)  # by pickle, as other processes get it
    again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert torch.equal(again(images).warped, transformer(images).warped)


def test_the_layer_that_cannot_start_at_the_identity_is_named():
    class HeadFirst(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = torch.nn.Linear(4, 6), torch.nn.Conv2d(3, 4, 3)

    with pytest.raises(ValueError, match=r"registered last .* 6 values; it is Conv2d\(3, 4"):
        SpatialTransformer(HeadFirst())


def test_a_prediction_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"^params: shape \(2, 5\); affine needs \(B, 6\)"):
        SpatialTransformer(network(5), initialize=False)(rand(2, 3, 8, 8))


# ---- what it does --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_it_is_affine_grid_and_grid_sample(shape, padding_mode):
    images, transformer = rand(3, *shape), looking(channels=shape[0], padding_mode=padding_mode)
    warped, theta, grid, _ = transformer(images)
    params = transformer.localization(images)
    assert (params[0] - params[1]).abs().max() > 1e-3  # each image has its own
    assert torch.equal(theta, params.reshape(-1, 2, 3))
    expected = F.affine_grid(theta, images.shape, align_corners=False)
    torch.testing.assert_close(grid, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(warped, F.grid_sample(images, grid, padding_mode=padding_mode,
                                                     align_corners=False), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("given", "size"), [
    (24, (24, 24)), ((20, 31), (20, 31)), ([8, 9], (8, 9)), (np.int64(6), (6, 6)),
    (torch.Size((5, 7)), (5, 7)), (None, (33, 47))])
def test_the_output_size_is_an_int_or_height_and_width(given, size):
    images, transformer = rand(2, 3, 33, 47), SpatialTransformer(network(6), output_size=given)
    warped, _, grid, _ = transformer(images)
    assert warped.shape == (2, 3, *size) and grid.shape == (2, *size, 2)
    # between the pixels' centres: bilinear interpolation to another size
    expected = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(warped, expected, rtol=0, atol=1e-5)


def test_supersampling_averages_a_finer_grid():
    transformer = SpatialTransformer(network(6), output_size=16, supersample=2)
    images = rand(2, 3, 32, 32)
    warped, _, grid, _ = transformer(images)
    assert grid.shape == (2, 32, 32, 2)
    torch.testing.assert_close(warped, F.avg_pool2d(images, 2))  # samples fall on pixel centres


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("output_size", [None, 20])
def test_two_iterations_sample_the_original_once_through_the_composed_theta(name, output_size):
    transformer = looking(name, iterations=2, output_size=output_size, reach=0.5)
    images, family = rand(3, 3, 32, 32), FAMILIES[name]

    def square(theta):
        last = torch.tensor([[[0.0, 0, 1]]]).expand(len(theta), 1, 3)
        return torch.cat([theta, last], dim=1) if theta.shape[1] == 2 else theta

    def warp(images, theta, size):
        grid = family.grid_of(theta if name == "projective" else theta[:, :2], size)
        return F.grid_sample(images, grid, align_corners=False)

    first = square(family.theta(transformer.localization(images)))
    once = warp(images, first, 32)  # at the images' size, whatever the output's
    second = square(family.theta(transformer.localization(once)))
    composed = first @ second / (first @ second)[:, 2:, 2:]
    warped, theta, *_ = transformer(images)
    torch.testing.assert_close(square(theta), composed, atol=1e-5, rtol=1e-5)
    size = output_size or 32
    torch.testing.assert_close(warped, warp(images, composed, size), atol=1e-3, rtol=0)
    # neither the first step alone, nor the image sampled twice
    assert not torch.allclose(warped, warp(images, first, size), atol=0.05)
    assert not torch.allclose(warped, warp(once, second, size), atol=0.05)


def test_each_iteration_adds_to_those_before():
    theta = predicting([math.radians(20)], "rotation", iterations=3)(rand(4, 3, 32, 32)).theta
    angle = torch.atan2(theta[:, 1, 0], theta[:, 0, 0])
    torch.testing.assert_close(angle, torch.full((4,), math.radians(60)))


# ---- known poses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("name", MATRIX)
def test_true_parameters_take_the_predictions_place_and_nothing_is_predicted(name, iterations):
    family, images = FAMILIES[name], rand(3, 3, 32, 32)
    true = family.identity() + 0.3 * rand(3, family.num_params, seed=3)
    transformer = SpatialTransformer(Unused(family.num_params), name, iterations=iterations)
    warped, theta, grid, pose_logits = transformer(images, true)
    assert torch.equal(theta, family.theta(true)) and pose_logits is None
    torch.testing.assert_close(warped, F.grid_sample(images, grid, align_corners=False))
    with pytest.raises(AssertionError, match="asked"):
        transformer(images, true, teacher_forcing=0.0)


@pytest.mark.parametrize("options", [
    dict(transform="rotation"), dict(transform="similarity", iterations=2), dict(transform="tps"),
    dict(transform="rotation", pose_bins=PoseBins("rotation", 12), outputs=12, reach=3)])
def test_teacher_forcing_is_the_probability_that_they_do(options):
    transformer, images = looking(**options), rand(400, 3, 8, 8)
    true = transformer.family.identity() + 0.1 + rand(400, transformer.family.num_params, seed=3)
    with torch.no_grad():
        predicted = transformer(images).theta
        forced = transformer.family.theta(true)

        def share(probability, seed=0):
            torch.manual_seed(seed)
            alignment = transformer(images, true, teacher_forcing=probability)
            assert (alignment.pose_logits is None) == ("pose_bins" not in options)
            near = (alignment.theta - forced).flatten(1).abs().amax(1) < 1e-6
            torch.testing.assert_close(alignment.theta[~near], predicted[~near])
            return near.float().mean().item()

        with torch.random.fork_rng():
            assert share(0.0) == 0 and share(1.0) == 1
            assert 0.4 < share(0.5) < 0.6
            assert share(0.5) == share(0.5, seed=0) != share(0.5, seed=1)


def test_a_network_of_pose_bins_warps_by_the_decoded_pose():
    bins = PoseBins("similarity", 16)
    transformer = looking("similarity", pose_bins=bins, outputs=64, reach=2)
    images = rand(3, 3, 8, 8)
    _, theta, _, pose_logits = transformer(images)
    assert torch.equal(pose_logits, transformer.localization(images))
    assert torch.equal(theta, transformer.family.theta(bins.decode(pose_logits).params))
    fresh = SpatialTransformer(network(64), "similarity", pose_bins=bins)
    torch.testing.assert_close(fresh(images).warped, images, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="a bias of 64 values"):
        SpatialTransformer(network(4), "similarity", pose_bins=bins)


# ---- undone on a map -----------------------------------------------------------------------------

KNOWN = {
    "translation": [0.2, -0.3], "rotation": [0.7], "attention": [-0.3, 0.1, 0.2],
    "similarity": [-0.6, 0.2, 0.1, 0.1], "affine": [0.9, -0.3, 0.1, 0.2, 1.1, -0.1],
    "projective": [0.9, -0.2, 0.1, 0.1, 1.1, -0.1, 0.2, -0.15],
}


def bumps(size, places):
    """Heat maps (1, K, H, W), a peak of 1 at each of `places` (K, 2): x, y in [-1, 1]."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    columns, rows = (((p + 1) * n - 1) / 2 for p, n in zip(np.transpose(places), (width, height),
                                                           strict=True))
    maps = [np.exp(-((x - c) ** 2 + (y - r) ** 2) / 8) for c, r in zip(columns, rows, strict=True)]
    return torch.tensor(np.stack(maps)[None])


def peaks(maps):
    """Where the centre of mass of each map (1, K, H, W) lies: (K, 2) pixels (x, y)."""
    return np.array([ndimage.center_of_mass(m)[::-1] for m in maps[0].numpy()])


@pytest.mark.parametrize("size", [None, (64, 96)])
@pytest.mark.parametrize("name", KNOWN)
def test_unwarp_puts_a_peak_back_in_its_place(name, size):
    """A peak seen at p on the warped image lies at theta(p) on the original."""
    transformer = predicting(KNOWN[name], name)
    theta = transformer(rand(1, 3, 48, 48)).theta.double()
    seen = np.array([[0.0, 0], [0.3, 0.1], [-0.2, 0.35], [0.1, -0.3]])
    matrix = np.eye(3)
    matrix[:theta.shape[1]] = theta[0].numpy()
    image = np.c_[seen, np.ones(4)] @ matrix.T
    expected = image[:, :2] / image[:, 2:]
    height, width = size or (48, 48)
    found = peaks(transformer.unwarp(bumps((48, 48), seen), theta, size))
    assert np.abs(found - ((expected + 1) * [width, height] - 1) / 2).max() < 0.5
    assert np.abs(found - ((seen + 1) * [width, height] - 1) / 2).max() > 2  # it was elsewhere


@pytest.mark.parametrize("name", ["translation", "rotation", "attention", "similarity", "affine"])
def test_unwarp_is_scipys_affine_transform(name):
    transformer, size, original = predicting(KNOWN[name], name), (30, 41), (36, 52)
    theta = transformer(rand(1, 3, 8, 8)).theta.double()
    maps = rand(1, 2, *size, seed=4, dtype=torch.float64)

    def pixels(height, width):
        return np.array([[0, height / 2, (height - 1) / 2], [width / 2, 0, (width - 1) / 2],
                         [0, 0, 1]])

    matrix = np.r_[theta[0].numpy(), [[0, 0, 1]]]
    matrix = pixels(*size) @ np.linalg.inv(matrix) @ np.linalg.inv(pixels(*original))
    found = transformer.unwarp(maps, theta, original)
    for one, other in zip(found[0], maps[0].numpy(), strict=True):
        expected = ndimage.affine_transform(other, matrix[:2, :2], matrix[:2, 2], original,
                                            order=1, mode="grid-constant")
        np.testing.assert_allclose(one, expected, atol=1e-6)


@pytest.mark.parametrize("name", MATRIX)
def test_what_was_warped_comes_back_where_the_transformer_looked(name):
    axis = torch.linspace(0, 3, 64)
    images = (axis.sin()[:, None] + axis.cos()).expand(2, 3, 64, 64)
    transformer = looking(name, reach=0.6)
    warped, theta, grid, _ = transformer(images)
    back, centres = FAMILIES[name].grid_of(inverse(theta), 64), identity_grid(grid)
    seen = ((back.abs() < 0.95) & (centres.abs() < 0.95)).all(-1)[:, None]
    back = transformer.unwarp(warped, theta)
    assert seen.float().mean() > 0.2 and (warped - images).abs().max() > 0.1
    assert (back - images).abs()[seen.expand_as(back)].max() < 0.05


def test_unwarp_sees_over_a_horizon_that_the_original_centre_lies_beyond():
    theta = torch.tensor([[[0.5, 0, 0.8], [0, 0.5, 0.8], [0.4, 0.4, 1]]])
    transformer, maps = without_network("projective"), torch.ones(1, 1, 64, 64)
    _, grid = transformer.warp(maps, theta)
    matrix, originals = theta[0].double(), identity_grid(grid)[0].double()
    homogeneous = F.pad(originals, (0, 1), value=1)
    seen_at = homogeneous @ matrix.inverse().T
    seen_at = seen_at / seen_at[..., 2:]
    looked_at = (seen_at.abs().amax(-1) <= 1) & (seen_at @ matrix[2] > 0)
    assert 0.02 < looked_at.float().mean() < 0.9
    found = transformer.unwarp(maps, theta)[0, 0] > 0.5
    assert (found != looked_at).float().mean() < 0.01


def test_a_size_is_an_int_too():
    transformer, maps = without_network("rotation"), rand(1, 2, 20, 20)
    theta = FAMILIES["rotation"].theta(torch.tensor([[0.7]]))
    square = transformer.unwarp(maps, theta, (30, 30))
    assert torch.equal(transformer.unwarp(maps, theta, 30), square)


def test_unwarp_refuses_what_cannot_be_undone():
    maps = rand(1, 1, 8, 8)
    spline = SpatialTransformer(network(32), "tps")
    with pytest.raises(ValueError, match=r"^transform: 'tps' .*matrix family"):
        spline.unwarp(maps, spline(rand(1, 3, 8, 8)).theta)
    with pytest.raises(ValueError, match=r"^theta: .*cannot be undone"):
        without_network("affine").unwarp(maps, torch.tensor([[[1.0, 0, 0], [0, 0, 0]]]))


# ---- in other hands ------------------------------------------------------------------------------


class Detector(nn.Module):
    """A network of someone else's, with a transformer in it."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.align = looking("similarity", channels=4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.head(self.align(self.features(images)).warped)


def test_it_is_a_part_of_a_bigger_module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, other = Detector(), Detector()
    images = rand(2, 3, 32, 32)
    assert {"align.localization.0.weight", "align.localization.4.bias"} < set(model.state_dict())
    model(images).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), model(images))
    nn.init.zeros_(twin.align.localization[-1].weight)  # of its own, not shared
    assert not torch.equal(twin(images), model(images))
    assert not torch.equal(other(images), model(images))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))


@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float16, 0.05), (torch.bfloat16, 0.2), (torch.float64, 1e-4)])
@pytest.mark.parametrize("options", [dict(), dict(iterations=2), dict(interpolation="bicubic"),
                                     dict(output_size=20, supersample=2)])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_another_precision_it_sees_the_same(name, options, dtype, tolerance):
    """The warped images have the images' type; coordinates are float32 at least."""
    if "iterations" in options and name == "tps":
        return
    axis = torch.linspace(0, 6, 33)
    images = (axis.sin()[:, None] + axis.cos()).expand(2, 3, 33, 33) / 2
    transformer = looking(name, **options)
    plain, fine = transformer(images), torch.promote_types(dtype, torch.float32)
    warped, theta, grid, _ = copy.deepcopy(transformer).to(dtype)(images.to(dtype))
    assert warped.dtype == dtype and theta.dtype == grid.dtype == fine
    assert (warped.double() - plain.warped).abs().max() < tolerance
    assert (theta.double() - plain.theta).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: SpatialTransformer(network(1), "rotation"),
                                  lambda: IdentityTransformer("rotation", output_size=20)])
def test_true_parameters_in_half_precision_are_taken(make, dtype):
    images, true = rand(2, 3, 32, 32, dtype=dtype), torch.tensor([[0.5], [-0.25]])
    warped, theta, grid, _ = make().to(dtype)(images, true.to(dtype))
    assert warped.dtype == dtype and theta.dtype == grid.dtype == torch.float32
    torch.testing.assert_close(theta, FAMILIES["rotation"].theta(true))


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("name", MATRIX)
def test_under_autocast_theta_and_grid_are_computed_in_float32(name, iterations):
    transformer, images, outputs = looking(name, iterations=iterations), rand(2, 3, 32, 32), []
    transformer.localization.register_forward_hook(lambda m, args, output: outputs.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped, theta, grid, _ = transformer(images)
    assert all(output.dtype == torch.bfloat16 for output in outputs)  # it was on
    assert theta.dtype == grid.dtype == warped.dtype == torch.float32
    if iterations == 1:  # and not merely converted
        assert torch.equal(theta, transformer.family.theta(outputs[0].float()))
    assert torch.equal(grid, transformer.family.grid_of(theta, 32))
    assert torch.equal(warped, F.grid_sample(images, grid, align_corners=False))


def test_its_repr_tells_the_family():
    text = repr(SpatialTransformer(network(1), "rotation", output_size=(20, 30)))
    assert "SpatialTransformer(\n  'rotation', output_size=(20, 30), padding_mode='zeros'" in text


# ---- the control ---------------------------------------------------------------------------------


def test_the_control_hands_images_on_with_the_same_interface():
    control, images = IdentityTransformer("similarity"), rand(2, 3, 33, 47)
    assert not list(control.parameters()) and not control.state_dict()
    warped, theta, grid, pose_logits = control(images)
    assert warped is images and pose_logits is None and control.pose_bins is None
    assert torch.equal(theta, torch.eye(2, 3).expand(2, 2, 3))
    fresh = SpatialTransformer(network(4), "similarity")(images)
    assert torch.equal(grid, fresh.grid) and control.family is FAMILIES["similarity"]
    true = torch.tensor([[0.5, 0.1, 0.2, 0.3]] * 2)
    expected = SpatialTransformer(network(4), "similarity")(images, true)
    for found, right in zip(control(images, true)[:3], expected[:3], strict=True):
        assert torch.equal(found, right)
    for found, right in zip(control(images, true, teacher_forcing=0.0)[:3], fresh[:3], strict=True):
        torch.testing.assert_close(found, right)


def test_the_control_resamples_to_another_output_size():
    images = rand(2, 3, 20, 20)
    warped = IdentityTransformer(output_size=33)(images).warped
    expected = SpatialTransformer(network(6), output_size=33)(images).warped
    assert torch.equal(warped, expected) and warped.shape == (2, 3, 33, 33)


# ---- it learns -----------------------------------------------------------------------------------


def blobs(centres):
    """Images (B, 1, 40, 40) of a blob of 4 pixels' radius; centres (B, 2): x, y from the middle."""
    axis = torch.arange(40) - 19.5
    x, y = ((axis - c[:, None]) / 4 for c in centres.unbind(1))
    return (-0.5 * (x[:, None, None] ** 2 + y[:, None, :, None] ** 2)).exp()


def test_it_learns_the_shift_of_a_blob_from_the_loss_of_the_network_behind_it():
    """Its images are to come out centred; a convolution cannot move them, the transformer can."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        localization = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(100, 32), nn.ReLU(),
                                     nn.Linear(32, 2))
        convolution = nn.Conv2d(1, 1, 3, padding=1)
    transformer, generator = SpatialTransformer(localization, "translation"), rng(0)
    model = nn.ModuleList([transformer, convolution])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    centred = blobs(torch.zeros(1, 2))

    def error():
        centres = 20 * rand(200, 2, seed=1) - 10
        with torch.no_grad():
            shift = 20 * transformer(blobs(centres)).theta[:, :, 2]
        return (shift - centres).norm(dim=1)

    assert error().mean() > 7
    for _ in range(200):
        images = blobs(20 * torch.rand(24, 2, generator=generator) - 10)
        loss = (convolution(transformer(images).warped) - centred).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error().max() < 1.5
