"""Split and Data say what is wrong with images of one's own; load_data fills them from a Config."""

import os
import re
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stn_cifar.config import Config
from stn_cifar.data import Data, NoDataError, Split, cifar10, dataset, distorted, load_data
from stn_cifar.data.suites import suite

REPOSITORY = Path(__file__).parents[1]


def images(count=6, channels=3, size=8):
    return torch.arange(count * channels * size**2).view(count, channels, size, -1).to(torch.uint8)


def split(count=6, channels=3, size=8, labels=None, poses=None):
    labels = torch.arange(count) % 3 if labels is None else torch.tensor(labels)
    return Split(images(count, channels, size), labels, poses)


def poses(count=6):
    return torch.eye(2, 3).expand(count, 2, 3)


# --- Split


@given(count=st.integers(1, 9), channels=st.integers(1, 5), size=st.integers(1, 7),
       rows=st.slices(9), posed=st.booleans())
def test_any_images_will_do_and_slices_take_all_of_it_along(count, channels, size, rows, posed):
    whole = split(count, channels, size, poses=poses(count) if posed else None)
    assert len(whole) == count
    expected = list(range(count))[rows]
    if rows.step is not None and rows.step < 0:
        return  # torch has no such slices
    if not expected:
        with pytest.raises(ValueError, match=r"images: shape \(0, "):
            whole[rows]
        return
    for part in (whole[rows], whole[torch.tensor(expected)]):
        assert torch.equal(part.images, whole.images[expected])
        assert torch.equal(part.labels, whole.labels[expected])
        assert (part.poses is None) == (not posed) and (not posed or len(part.poses) == len(part))


def test_a_slice_copies_nothing_and_a_device_takes_all():
    whole = split(poses=poses())
    assert whole[2:4].images.data_ptr() == whole.images[2].data_ptr()
    moved = whole.to("meta")
    assert {t.device.type for t in (moved.images, moved.labels, moved.poses)} == {"meta"}


LABELS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize("arguments, words", [
    ((images().float() / 255, LABELS), r"images: torch.float32; must be uint8 in 0..255, not norm"),
    ((images().float() / 255, LABELS), r"\(255 \* images\).round\(\).to\(torch.uint8\)"),
    ((images().long(), LABELS), r"images: torch.int64; must be uint8 .*images.to\(torch.uint8\)"),
    ((images().bool(), LABELS), "images: torch.bool; must be uint8"),
    ((images().numpy(), LABELS), "images: a ndarray; must be a Tensor"),
    ((list(images()), LABELS), "images: a list; must be a Tensor"),
    ((images().permute(0, 2, 3, 1), LABELS), r"shape \(6, 8, 8, 3\); must be .*permute\(0, 3, 1,"),
    ((images()[:, 0], LABELS), r"shape \(6, 8, 8\); must be .*unsqueeze\(1\)"),
    ((images()[:, :, :4], LABELS), r"images: shape \(6, 3, 4, 8\); must be \(N, C, H, H\)"),
    ((images()[:, :0], LABELS), r"images: shape \(6, 0, 8, 8\); must be"),
    ((images()[:, :, :0, :0], LABELS), r"images: shape \(6, 3, 0, 0\); must be"),
    ((images()[:0], LABELS[:0]), r"images: shape \(0, 3, 8, 8\); must be .*N and C at least 1"),
    ((images().sum(), LABELS), "images: a number; must be one for each image"),
    ((images(), LABELS[:5]), "labels: 5; must be 6, one for each image"),
    ((images(), LABELS.int()), r"labels: torch.int32; must be int64, .*labels.long\(\)"),
    ((images(), LABELS.float()), "labels: torch.float32; must be int64"),
    ((images(), torch.eye(6, 3).long()), r"labels: shape \(6, 3\); must be \(N,\)"),
    ((images(), LABELS.tolist()), "labels: a list; must be a Tensor"),
    ((images(), torch.tensor(3)), "labels: a number; must be one for each image"),
    ((images(), LABELS.to("meta")), "labels: on meta; must be on cpu, as the images are"),
    ((images(), LABELS, poses(5)), "poses: 5; must be 6, one for each image"),
    ((images(), LABELS, poses().long()), "poses: .*; must be floating point"),
    ((images(), LABELS, poses().flatten(1)), "poses: .*; must be floating point, .N, ...."),
    ((images(), LABELS, poses().transpose(1, 2)), r"poses: torch.float32 \(6, 3, 2\); must be"),
    ((images(), LABELS, poses().to("meta")), "poses: on meta; must be on cpu"),
    ((images(), LABELS, "upright"), "poses: a str; must be a Tensor"),
])
def test_a_split_says_what_is_wrong_and_what_would_be_right(arguments, words):
    with pytest.raises(ValueError, match=words):
        Split(*arguments)


def test_poses_are_float32_whatever_they_came_in():
    given = torch.eye(2, 3, dtype=torch.float64).expand(6, 2, 3)
    split = Split(images(), LABELS, given)
    assert split.poses.dtype == torch.float32 and torch.equal(split.poses.double(), given)


# --- Data


def test_a_name_is_text_and_poses_are_finite():
    with pytest.raises(ValueError, match=r"^name: .*photos.*; must be text"):
        Data(Split(images(), LABELS), name=Path("photos"))
    with pytest.raises(ValueError, match=r"^train: poses with NaN or infinity; must be finite"):
        Data(Split(images(), LABELS, poses() * torch.nan))


def test_classes_are_named_by_their_numbers_where_nobody_names_them():
    data = Data(split(labels=[0, 4, 1, 1, 1, 1]), test=split(labels=[0, 6, 0, 0, 0, 0]))
    assert data.classes == ("0", "1", "2", "3", "4", "5", "6") and data.name == "data"
    assert Data(split(), classes=["a", "b", "c"]).classes == ("a", "b", "c")
    assert Data(split(), classes=np.array(["a", "b", "c"])).classes == ("a", "b", "c")


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 64), (4, 5)])
def test_data_knows_its_images(channels, size):
    data = Data(split(6, channels, size), split(2, channels, size), split(1, channels, size))
    assert (data.channels, data.size, data.posed) == (channels, size, False)
    assert Data(split(6, channels, size, poses=poses())).posed


def test_val_and_test_may_be_left_out_and_be_larger_where_they_are_distorted():
    data = Data(split())
    assert data.val is None and data.test is None
    large = split(size=12, poses=poses())
    assert Data(split(), large, large).size == 8
    for train, test in ((split(), split(size=12)), (split(poses=poses()), large),
                        (split(channels=1), large)):
        with pytest.raises(ValueError, match=r"test: images of \(3, 12, 12\); must be \(\d, 8,"):
            Data(train, test=test)


@pytest.mark.parametrize("fields, words", [
    (dict(train=None), "train: a NoneType; must be a Split"),
    (dict(train=(images(), LABELS)), r"train: a tuple; must be a Split\(images, labels\)"),
    (dict(val=images()), "val: a Tensor; must be a Split"),
    (dict(test="test"), "test: a str; must be a Split"),
    (dict(val=split(channels=1)), r"val: images of \(1, 8, 8\); must be \(3, 8, 8\), as in train"),
    (dict(test=split().to("meta")), "test: on meta; must be on cpu"),
    (dict(classes=("a", "b")), "train: labels from 0 to 2; must be from 0 to 1, .* 2 classes"),
    (dict(test=split(labels=[1, 2, 3, 1, 1, 1]), classes=["a", "b", "c"]),
     "test: labels from 1 to 3; must be from 0 to 2"),
    (dict(val=split(labels=[0, -1, 0, 0, 0, 0])), "val: labels from -1 to 0; must be from 0 to 2"),
    (dict(classes=()), "train: labels from 0 to 2; must be from 0 to -1, as there are 0 classes"),
    (dict(classes="abc"), r"classes: 'abc'; must be names, such as"),
    (dict(classes=3), "classes: 3; must be names"),
])
def test_data_says_what_is_wrong_and_what_would_be_right(fields, words):
    with pytest.raises(ValueError, match=words):
        Data(**{"train": split(), "test": split(), **fields})


def test_a_split_in_known_poses_is_not_distorted_again():
    large = split(size=16)
    once = distorted(large, "rotation")
    pictures, theta = suite(large.images, "rotation")
    assert torch.equal(once.images, pictures) and torch.equal(once.poses, theta)
    assert torch.equal(once.labels, large.labels) and large.poses is None
    with pytest.raises(ValueError, match="split: in known poses already"):
        distorted(once, "rotation")


# --- load_data


@pytest.fixture
def world(monkeypatch):
    """CIFAR-10 of 60 images, or none; 50 and 10 glyphs. What was asked for is listed."""
    asked = []
    whole = torch.arange(60).to(torch.uint8).view(-1, 1, 1, 1).expand(60, 3, 32, 32).contiguous()

    def load(data_root, strict):
        asked.append((data_root, strict))
        if asked[0] == "nothing":
            raise NoDataError("no source: refused; set STN_CIFAR_DATA")
        return whole, torch.arange(60) % 10

    def make_glyphs(count, seed):
        asked.append((count, seed))
        n = count // 1000
        return (torch.full((n, 3, 32, 32), seed, dtype=torch.uint8), torch.arange(n) % 10, poses(n))

    monkeypatch.setattr(cifar10, "load", load)
    monkeypatch.setattr(dataset.glyphs, "make_glyphs", make_glyphs)
    return asked


def config(**fields):
    return Config(**{"dataset": "cifar10", "device": "cpu", **fields})


def test_cifar10(world, capsys):
    data = load_data(config(data_root="somewhere"))
    assert (data.name, data.classes[3], len(data.classes)) == ("CIFAR-10", "cat", 10)
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(50))
    assert data.test.images[:, 0, 0, 0].tolist() == list(range(50, 60))
    assert data.val is None and data.train.poses is None and not data.posed
    load_data(config(dataset="auto"))
    assert world == [("somewhere", True), (None, False)]
    assert capsys.readouterr().out == ""


def test_val_size(world):
    whole = load_data(config()).train
    for seed in (0, 1):
        data = load_data(config(val_size=3, seed=seed))
        assert torch.equal(data.val.images, whole.images[-3:])
        assert torch.equal(data.val.labels, whole.labels[-3:])
        assert torch.equal(data.train.images, whole.images[:-3])
        assert torch.equal(data.train.labels, whole.labels[:-3])
    assert len(load_data(config(val_size=49)).train) == 1
    with pytest.raises(ValueError, match=r"val_size: 50 of CIFAR-10's 50 .*; must be from 0 to 49"):
        load_data(config(val_size=50))


@pytest.mark.parametrize("distortion, size", [("rotation", 32), ("translation", 48)])
def test_val_and_test_are_the_frozen_suites_at_the_canvas_size(world, distortion, size):
    upright = load_data(config(val_size=5))
    for seed in (0, 1):
        data = load_data(config(val_size=5, distortion=distortion, seed=seed))
        assert torch.equal(data.train.images, upright.train.images) and data.train.poses is None
        for part, before in ((data.test, upright.test), (data.val, upright.val)):
            pictures, theta = suite(before.images, distortion)
            assert pictures.shape[-1] == size
            assert torch.equal(part.images, pictures) and torch.equal(part.poses, theta)
    assert data.size == 32  # what training images have before they are distorted


def test_glyphs(world, capsys):
    data = load_data(config(dataset="glyphs", val_size=10, seed=7))
    assert world == [(50_000, 0), (10_000, 1)]  # the same whatever the seed
    assert data.name == "glyphs" and data.classes == tuple("AFGJK237?&") and data.posed
    splits = (data.train, data.val, data.test)
    assert [(len(part), len(part.poses)) for part in splits] == [(40, 40), (10, 10), (10, 10)]
    assert capsys.readouterr().out == ""


def test_glyphs_are_not_distorted_and_that_is_said(world, capsys):
    data = load_data(config(dataset="glyphs", distortion="translation"))
    assert data.test.images.shape == (10, 3, 32, 32)
    assert torch.equal(data.test.poses, poses(10))
    assert re.search("glyphs are in random poses already: distortion='translation' is left out",
                     capsys.readouterr().out)


@pytest.mark.parametrize("fields", [{}, dict(distortion="rotation", flip=True)])
def test_auto_goes_on_with_glyphs_and_says_so(world, capsys, fields):
    world.append("nothing")
    data = load_data(config(dataset="auto", **fields))
    assert data.name == "glyphs" and len(data.train) == 50
    banner = capsys.readouterr().out
    assert "THIS IS NOT CIFAR-10" in banner and "refused" in banner and "STN_CIFAR_DATA" in banner
    assert ("distortion='rotation' is left out" in banner) == bool(fields)
    assert len(banner.splitlines()) >= 5 and "=" * 80 in banner
    with pytest.raises(NoDataError):
        load_data(config(**fields))


def test_real_cifar10():
    """The pixels, in the order N x 32 x 32 x 3, are those that the official release holds."""
    place = os.environ.get("STN_CIFAR_DATA") or REPOSITORY.parent / "shared" / "datasets"
    if cifar10.find(place, strict=False) is None:
        pytest.skip("CIFAR-10 is not here: set STN_CIFAR_DATA to the folder that holds it")
    data = load_data(config(data_root=str(place)))
    found = [md5(part.images.permute(0, 2, 3, 1).contiguous().numpy()).hexdigest()
             for part in (data.train, data.test)]
    assert found == ["17e2cb5a4119d89a4a13e02b91701bff", "6d2714505047e13831cd876923568712"]
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels[:4].tolist() == [3, 8, 8, 0]
    assert data.classes[data.test.labels[0]] == "cat"
