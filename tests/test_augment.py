"""Augmentation: as numpy pads and slices; sampled from (seed, epoch) alone; flips alternate."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_cifar.data import augment
from stn_cifar.distortions import OUTSIDE

SIZE = 8


def images_of(count=6, channels=3, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def sampled(images, epoch=1, seed=0, stream=0, **options):
    """Parameters for `images`; stream: the seed of the generator that training hands over."""
    generator = torch.Generator().manual_seed(stream)
    return augment.sample_params(images, epoch, seed, generator, **options)


def augmented(images, params, cutout=0):
    """Mirrored, shifted, and with a hole."""
    return augment.cut_out(augment.apply(images, params), params, cutout)


def by_hand(image, flip, down, right, top, left, cutout, mode="reflect"):
    """One image (C, S, S) by numpy: the window `down` and `right`, mirrored, then its hole."""
    around, size = image.shape[-1] - 1, image.shape[-1]
    wide = np.pad(image, ((0, 0), (around, around), (around, around)), mode=mode)
    window = wide[:, around + down:, around + right:][:, :size, :size]
    window = np.array(window[:, :, ::-1] if flip else window)
    colour = OUTSIDE if len(image) == 3 else (128,) * len(image)
    window[:, top:top + cutout, left:left + cutout] = np.reshape(colour, (-1, 1, 1))
    return window


def all_by_hand(images, params, cutout=0, **how):
    return np.stack([by_hand(image, *row, cutout, **how)
                     for image, row in zip(images.numpy(), params.tolist(), strict=True)])


# ---- what is done to an image --------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_every_image_is_as_numpy_makes_it(data):
    size, channels = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 3]))
    cutout = data.draw(st.integers(0, size))
    shift, corner = st.integers(1 - size, size - 1), st.integers(0, size - cutout)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 1), shift, shift, corner, corner),
                              min_size=1, max_size=4))
    images, params = images_of(len(rows), channels, size), torch.tensor(rows)
    before = images.clone()
    result = augmented(images, params, cutout)
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), all_by_hand(images, params, cutout))
    assert torch.equal(images, before)  # the training images are not written to


@pytest.mark.parametrize(("wrong", "how"), [
    ([0, 1, 2, 3, 4], dict(mode="edge")), ([0, 1, 2, 3, 4], dict(mode="symmetric")),
    ([0, 1, 2, 3, 4], dict(mode="wrap")), ([0, 2, 1, 3, 4], {}), ([0, 1, 2, 4, 3], {}),
    ([0, -1, 2, 3, 4], {}), ([0, 1, -2, 3, 4], {}), ([1, 1, 2, 3, 4], {}), ([0, 1, 2, 3, 3], {})])
def test_the_comparison_with_numpy_shows_what_is_done_otherwise(wrong, how):
    """The negative control: another edge, axes exchanged, another direction, a flip, a hole."""
    images = images_of(1)
    result = augmented(images, torch.tensor([[0, 1, 2, 3, 4]]), 2)
    assert not np.array_equal(result.numpy(), all_by_hand(images, torch.tensor([wrong]), 2, **how))


def test_a_positive_shift_moves_the_image_up_and_left_and_mirrors_the_rest():
    ramp = torch.arange(SIZE, dtype=torch.uint8).expand(1, 3, SIZE, SIZE)
    right = augmented(ramp, torch.tensor([[0, 0, 2, 0, 0]]))[0, 0, 0].tolist()
    assert right == [2, 3, 4, 5, 6, 7, 6, 5]  # 6, the neighbour of the outermost pixel, comes first
    down = augmented(ramp.mT, torch.tensor([[0, -2, 0, 0, 0]]))[0, 0, :, 0].tolist()
    assert down == [2, 1, 0, 1, 2, 3, 4, 5]
    assert augmented(ramp, torch.tensor([[1, 0, 2, 0, 0]]))[0, 0, 0].tolist() == right[::-1]


@pytest.mark.parametrize(("channels", "mean"), [(3, (0.4914, 0.4822, 0.4465)), (1, (0.5,))])
def test_a_hole_is_what_a_network_that_normalizes_takes_for_nothing(channels, mean):
    images = torch.full((1, channels, SIZE, SIZE), 7, dtype=torch.uint8)
    result = augmented(images, torch.tensor([[1, 2, -3, 5, 0]]), 3)[0]
    hole = result[:, 5:8, 0:3] / 255
    assert (hole - torch.tensor(mean).view(-1, 1, 1)).abs().max() < 1 / 255
    assert (result != 7).sum() == 9 * channels


def test_each_image_of_a_batch_gets_what_was_sampled_for_it():
    images = images_of(20)
    params = sampled(images, flip=True, shift=3, cutout=4)
    whole, index = augmented(images, params, 4), torch.tensor([3, 19, 0, 3])
    assert torch.equal(augmented(images[index], params[index], 4), whole[index])
    assert not torch.equal(augmented(images[index], params[:4], 4), whole[index])


def test_nothing_is_read_back_from_the_device():
    """A GPU would wait. Tensors without memory cannot be read: they know their shape only."""
    params = torch.zeros(6, 5, dtype=torch.int64, device="meta")
    result = augmented(images_of().to("meta"), params, 4)
    assert result.shape == (6, 3, SIZE, SIZE) and result.dtype == torch.uint8
    with pytest.raises(RuntimeError):
        bool(result.any())  # so it would have been noticed


# ---- what is sampled -----------------------------------------------------------------------------


def test_without_augmentation_nothing_is_sampled():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment.sample_params(images_of(), 1, 0, generator) is None
    assert torch.equal(generator.get_state(), before)  # a distortion's poses are those without this


@pytest.mark.parametrize("options", [dict(flip=True), dict(shift=2), dict(cutout=3)])
def test_what_is_not_asked_for_is_not_done(options):
    images = images_of(200)
    params = sampled(images, **options)
    assert params.shape == (200, 5) and params.dtype == torch.int64 and params.device.type == "cpu"
    assert params[:, 0].any() == ("flip" in options)
    assert params[:, 1:3].any() == ("shift" in options)
    holes = augmented(images, params, options.get("cutout", 0)) != augmented(images, params)
    assert holes.any() == ("cutout" in options) and (holes.any(1).sum((1, 2)) <= 9).all()


def test_shifts_and_holes_take_every_place_alike():
    params = sampled(images_of(20_000, 1), shift=2, cutout=5)
    for column, places in ((1, range(-2, 3)), (2, range(-2, 3)), (3, range(4)), (4, range(4))):
        values, counts = params[:, column].unique(return_counts=True)
        assert values.tolist() == list(places)  # the outermost too, and none beyond
        expected = 20_000 / len(places)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()  # five standard deviations
    correlations = np.corrcoef(params[:, 1:].T.numpy())[~np.eye(4, dtype=bool)]
    assert abs(correlations).max() < 5 / 20_000**0.5  # y does not tell x


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.integers(1, 100))
def test_two_epochs_show_every_image_both_ways(seed, epoch):
    images = images_of(300, 1)
    flips = [sampled(images, e, seed, stream=e, flip=True)[:, 0] for e in range(epoch, epoch + 4)]
    assert all(torch.equal(a + b, torch.ones_like(a)) for a, b in itertools.pairwise(flips))
    assert 100 < flips[0].sum() < 200  # chance decides where each begins


def test_mirrored_and_plain_images_are_what_two_epochs_show():
    images = images_of(50)
    shown = torch.stack([augmented(images, sampled(images, epoch, flip=True))
                         for epoch in (7, 8)])
    both = torch.stack([images, images.flip(-1)])
    same = (shown == both).flatten(2).all(2)
    swapped = (shown == both.flip(0)).flatten(2).all(2)
    assert torch.equal(same[0], same[1]) and torch.equal(swapped[0], ~same[0])


def test_flips_depend_on_the_seed_and_not_on_what_else_is_sampled():
    images = images_of(300, 1)
    flips = sampled(images, seed=3, stream=5, flip=True)[:, 0]
    other = sampled(images, seed=3, stream=6, flip=True, shift=2, cutout=4)[:, 0]
    assert torch.equal(other, flips)
    assert torch.equal(sampled(images[:100], 3, seed=3, flip=True)[:, 0], flips[:100])
    seeds = torch.stack([sampled(images, seed=seed, flip=True)[:, 0] for seed in range(20)])
    agree = (seeds[:, None] == seeds).float().mean(-1)[~torch.eye(20, dtype=torch.bool)]
    assert agree.min() > 0.3 and agree.max() < 0.7


def test_shifts_are_the_same_with_and_without_flips():
    """So that a run without flips differs from one with them in the flips alone."""
    with_flips, without = (sampled(images_of(100), flip=flip, shift=2, cutout=3)
                           for flip in (True, False))
    assert torch.equal(with_flips[:, 1:], without[:, 1:]) and not torch.equal(with_flips, without)


def test_the_same_is_sampled_again_whatever_the_global_random_state():
    images, options = images_of(100), dict(flip=True, shift=2, cutout=3, seed=4)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sampled(images, 9, stream=9, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(sampled(images, 9, stream=9, **options), first)
    assert not torch.equal(sampled(images, 9, stream=10, **options)[:, 1:], first[:, 1:])


@pytest.mark.parametrize(("options", "message"), [
    (dict(shift=SIZE), r"^shift: 8 pixels, in images of 8; must be <= 7$"),
    (dict(shift=2, cutout=SIZE + 1), r"^cutout: 9 pixels, in images of 8; must be <= 8$"),
    (dict(flip=True, shift=2**40), r"^shift: ")])
def test_what_does_not_fit_the_images_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(images_of(), **options)


def test_the_largest_that_fits_is_taken():
    images = images_of(200)
    params = sampled(images, shift=SIZE - 1, cutout=SIZE)
    assert params[:, 1].max() == SIZE - 1 and not params[:, 3:].any()
    assert np.array_equal(augmented(images, params).numpy(), all_by_hand(images, params))
    hole = torch.tensor(OUTSIDE, dtype=torch.uint8).view(3, 1, 1)
    assert torch.equal(augmented(images, params, SIZE), hole.expand_as(images))
