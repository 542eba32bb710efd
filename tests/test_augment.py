"""Augmentation: every picture as numpy pads and slices it, drawn from (seed, epoch) alone; flips that alternate."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_cifar import augment
from stn_cifar.config import Config
from stn_cifar.distortions import OUTSIDE

SIZE = 8


def config(**fields):
    return Config(device="cpu", **fields)


def pictures(count=6, channels=3, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def drawn(images, epoch=1, stream=0, **fields):
    """What is drawn for `images`; stream: the seed of the generator that the trainer hands over."""
    return augment.draw(config(**fields), images, epoch, torch.Generator().manual_seed(stream))


def by_hand(image, flip, down, right, top, left, cutout, mode="reflect"):
    """One picture (C, S, S) by numpy: the window that lies `down` and `right`, mirrored, then with its hole."""
    around = image.shape[-1] - 1
    wide = np.pad(image, ((0, 0), (around, around), (around, around)), mode=mode)
    window = wide[:, around + down:, around + right:][:, :image.shape[1], :image.shape[2]]
    window = np.array(window[:, :, ::-1] if flip else window)
    window[:, top:top + cutout, left:left + cutout] = np.reshape(OUTSIDE if len(image) == 3 else [128], (-1, 1, 1))
    return window


def all_by_hand(images, rows, cutout=0, **how):
    return np.stack([by_hand(image, *row, cutout, **how)
                     for image, row in zip(images.numpy(), rows.tolist(), strict=True)])


# ---- what is done to a picture --------------------------------------------------------------------------------------


@given(st.data())
def test_every_picture_is_as_numpy_makes_it(data):
    size, channels = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 3]))
    cutout = data.draw(st.integers(0, size))
    shift, corner = st.integers(1 - size, size - 1), st.integers(0, size - cutout)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 1), shift, shift, corner, corner), min_size=1, max_size=4))
    images, rows = pictures(len(rows), channels, size), torch.tensor(rows)
    before = images.clone()
    result = augment.apply(images, rows, cutout)
    assert result.dtype == torch.uint8 and np.array_equal(result.numpy(), all_by_hand(images, rows, cutout))
    assert torch.equal(images, before)  # the training images are not written to


@pytest.mark.parametrize(("wrong", "how"), [
    ([0, 1, 2, 3, 4], dict(mode="edge")), ([0, 1, 2, 3, 4], dict(mode="symmetric")),
    ([0, 1, 2, 3, 4], dict(mode="wrap")),
    ([0, 2, 1, 3, 4], {}), ([0, 1, 2, 4, 3], {}), ([0, -1, 2, 3, 4], {}), ([0, 1, -2, 3, 4], {}), ([1, 1, 2, 3, 4], {}),
    ([0, 1, 2, 3, 3], {})])
def test_the_comparison_with_numpy_shows_what_is_done_otherwise(wrong, how):
    """The negative control: another edge, axes exchanged, another direction, a flip too many, a hole elsewhere."""
    images = pictures(1)
    result = augment.apply(images, torch.tensor([[0, 1, 2, 3, 4]]), 2)
    assert np.array_equal(result.numpy(), all_by_hand(images, torch.tensor([[0, 1, 2, 3, 4]]), 2))
    assert not np.array_equal(result.numpy(), all_by_hand(images, torch.tensor([wrong]), 2, **how))


def test_what_does_nothing_returns_the_pictures():
    assert torch.equal(augment.apply(pictures(), torch.zeros(6, 5, dtype=torch.int64)), pictures())


def test_a_positive_shift_moves_the_picture_up_and_left_and_mirrors_the_rest():
    ramp = torch.arange(SIZE, dtype=torch.uint8).expand(1, 3, SIZE, SIZE)
    right = augment.apply(ramp, torch.tensor([[0, 0, 2, 0, 0]]))[0, 0, 0].tolist()
    assert right == [2, 3, 4, 5, 6, 7, 6, 5]  # 6, the neighbour of the outermost pixel, comes first
    down = augment.apply(ramp.mT, torch.tensor([[0, -2, 0, 0, 0]]))[0, 0, :, 0].tolist()
    assert down == [2, 1, 0, 1, 2, 3, 4, 5]
    assert augment.apply(ramp, torch.tensor([[1, 0, 2, 0, 0]]))[0, 0, 0].tolist() == right[::-1]


@pytest.mark.parametrize(("channels", "colour"), [(3, OUTSIDE), (1, (128,))])
def test_a_hole_is_a_square_of_the_mean_colour(channels, colour):
    images = torch.full((1, channels, SIZE, SIZE), 7, dtype=torch.uint8)
    result = augment.apply(images, torch.tensor([[1, 2, -3, 5, 0]]), 3)[0]
    expected = images[0].clone()
    expected[:, 5:8, 0:3] = torch.tensor(colour, dtype=torch.uint8).view(-1, 1, 1)
    assert torch.equal(result, expected)
    # what a network that normalizes takes for nothing, to rounding
    mean = torch.tensor((0.4914, 0.4822, 0.4465) if channels == 3 else (0.5,))
    assert ((torch.tensor(colour) / 255 - mean).abs() < 1 / 255).all()


def test_each_picture_of_a_batch_gets_what_was_drawn_for_it():
    images = pictures(20)
    rows = drawn(images, flip=True, shift=3, cutout=4)
    whole, index = augment.apply(images, rows, 4), torch.tensor([3, 19, 0, 3])
    assert torch.equal(augment.apply(images[index], rows[index], 4), whole[index])
    assert not torch.equal(augment.apply(images[index], rows[:4], 4), whole[index])


def test_nothing_is_read_back_from_the_device():
    """A captured graph allows no copy to the host: neither do tensors without memory, which know their shape only."""
    images, rows = pictures().to("meta"), torch.zeros(6, 5, dtype=torch.int64, device="meta")
    result = augment.apply(images, rows, 4)
    assert result.shape == images.shape and result.dtype == torch.uint8 and result.is_meta
    with pytest.raises(RuntimeError):
        bool(result.any())  # so it would have been noticed


# ---- what is drawn --------------------------------------------------------------------------------------------------


def test_without_augmentation_nothing_is_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment.draw(config(), pictures(), 1, generator) is None
    assert torch.equal(generator.get_state(), before)  # or distortions would be others than before there was this


@pytest.mark.parametrize("fields", [dict(flip=True), dict(shift=2), dict(cutout=3)])
def test_what_is_not_asked_for_is_not_done(fields):
    images = pictures(200)
    rows = drawn(images, **fields)
    assert rows.shape == (200, 5) and rows.dtype == torch.int64 and rows.device.type == "cpu"
    assert rows[:, 0].any() == ("flip" in fields) and rows[:, 1:3].any() == ("shift" in fields)
    result = augment.apply(images, rows, fields.get("cutout", 0))
    mean = (result == torch.tensor(OUTSIDE, dtype=torch.uint8).view(3, 1, 1)).all(1).sum((1, 2))
    if "cutout" in fields:
        assert (mean >= 9).all() and ((result != images).any(1).sum((1, 2)) <= 9).all()
    else:
        assert mean.sum() < 200


def test_shifts_and_holes_take_every_place_alike():
    images = pictures(20_000, 1)
    rows = drawn(images, shift=2, cutout=5)
    for column, places in ((1, range(-2, 3)), (2, range(-2, 3)), (3, range(4)), (4, range(4))):
        values, counts = rows[:, column].unique(return_counts=True)
        assert values.tolist() == list(places)  # the outermost too, and none beyond
        expected = 20_000 / len(places)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()  # five standard deviations
    corners = np.corrcoef(rows[:, 1:].T.numpy())[~np.eye(4, dtype=bool)]
    assert abs(corners).max() < 5 / 20_000**0.5  # y does not tell x


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.integers(1, 100))
def test_two_epochs_show_every_picture_both_ways(seed, epoch):
    images = pictures(300, 1)
    flips = [drawn(images, e, stream=e, seed=seed, flip=True)[:, 0] for e in range(epoch, epoch + 4)]
    assert all(torch.equal(a + b, torch.ones_like(a)) for a, b in itertools.pairwise(flips))
    assert 100 < flips[0].sum() < 200  # chance decides where each begins


def test_mirrored_and_plain_pictures_are_what_two_epochs_show():
    images = pictures(50)
    first, second = (augment.apply(images, drawn(images, epoch, flip=True)) for epoch in (7, 8))
    for image, a, b in zip(images, first, second, strict=True):
        assert (torch.equal(a, image) and torch.equal(b, image.flip(-1))) or (
            torch.equal(b, image) and torch.equal(a, image.flip(-1)))


def test_flips_depend_on_the_seed_and_not_on_what_else_is_drawn():
    images = pictures(300, 1)
    flips = drawn(images, 1, stream=5, seed=3, flip=True)[:, 0]
    assert torch.equal(drawn(images, 1, stream=6, seed=3, flip=True, shift=2, cutout=4)[:, 0], flips)
    assert torch.equal(drawn(images[:100], 3, seed=3, flip=True)[:, 0], flips[:100])
    others = torch.stack([drawn(images, 1, seed=seed, flip=True)[:, 0] for seed in range(20)])
    agree = (others[:, None] == others).float().mean(-1)[~torch.eye(20, dtype=torch.bool)]
    assert agree.min() > 0.3 and agree.max() < 0.7


def test_shifts_are_the_same_with_and_without_flips():
    """So that a run without flips differs from one with them in the flips alone."""
    images = pictures(100)
    with_flips, without = (drawn(images, flip=flip, shift=2, cutout=3) for flip in (True, False))
    assert torch.equal(with_flips[:, 1:], without[:, 1:]) and not torch.equal(with_flips, without)


def test_the_same_is_drawn_again_for_the_same_epoch_whatever_the_world():
    images, fields = pictures(100), dict(flip=True, shift=2, cutout=3, seed=4)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = drawn(images, 9, stream=9, **fields)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(images, 9, stream=9, **fields), first)
    assert not torch.equal(drawn(images, 9, stream=10, **fields)[:, 1:], first[:, 1:])


@pytest.mark.parametrize(("fields", "message"), [
    (dict(shift=SIZE), r"^shift: 8 pixels, in pictures of 8; must be <= 7$"),
    (dict(shift=2, cutout=SIZE + 1), r"^cutout: 9 pixels, in pictures of 8; must be <= 8$"),
    (dict(flip=True, shift=2**40), r"^shift: ")])
def test_what_does_not_fit_the_pictures_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        drawn(pictures(), **fields)


def test_the_largest_that_fits_is_taken():
    images = pictures(200, 3)
    rows = drawn(images, shift=SIZE - 1, cutout=SIZE)
    assert rows[:, 1].max() == SIZE - 1 and not rows[:, 3:].any()
    assert np.array_equal(augment.apply(images, rows).numpy(), all_by_hand(images, rows))
    assert (augment.apply(images, rows, SIZE) == torch.tensor(OUTSIDE, dtype=torch.uint8).view(3, 1, 1)).all()
