"""glyphs: their poses are checked against scipy.ndimage, which knows nothing of grid_sample."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from scipy import ndimage, stats

from stn_cifar.data import glyphs
from stn_cifar.data.glyphs import CLASSES, FONTS, GLYPH_RADIUS, MAX_ANGLE, MAX_SHIFT

SIZE = 32


@pytest.fixture(scope="module")
def sample():
    """300 images as (grey (N, H, W) in [0, 1], labels (N,), poses (N, 2, 3)), all numpy."""
    images, labels, poses = glyphs.make_glyphs(300, seed=7, size=SIZE)
    return images.numpy().mean(axis=1) / 255, labels.numpy(), poses.double().numpy()


@pytest.fixture(scope="module")
def atlas():
    """The upright masks at picture size: (classes, fonts, H, W)."""
    return glyphs.draw_atlas(SIZE).numpy()


def inverse(theta):
    return np.linalg.inv(np.vstack([theta, [0, 0, 1]]))[:2]


def warp(image, theta):
    """image (H, W) sampled at theta p for every pixel p, by scipy.ndimage: (row, column)."""
    half = np.array(image.shape) / 2
    centre = half - 0.5  # the index of the point (0, 0), as align_corners=False has it
    matrix = theta[::-1, 1::-1]  # (x, y) -> (row, column)
    offset = centre + theta[::-1, 2] * half - matrix @ centre
    return ndimage.affine_transform(image, matrix, offset, order=1, mode="constant")


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def likeness(image, masks):
    """How well the best of the masks (fonts, H, W) explains the image, darker or lighter."""
    return max(abs(correlation(image, mask)) for mask in masks)


def test_same_seed_same_pictures():
    first, second, other = (glyphs.make_glyphs(30, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_pictures_do_not_depend_on_plotting_style():
    expected = glyphs.draw_atlas(SIZE)
    loud = {"figure.facecolor": "gray", "path.sketch": (2, 20, 2), "patch.antialiased": False}
    with matplotlib.rc_context(loud):
        assert torch.equal(glyphs.draw_atlas(SIZE), expected)


def test_global_state_is_left_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    style_before = dict(matplotlib.rcParams)
    glyphs.make_glyphs(10, seed=0)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert dict(matplotlib.rcParams) == style_before


@pytest.mark.parametrize("count, size", [(1, 32), (7, 16), (25, 33), (12, 96)])
def test_shapes_and_types(count, size):
    images, labels, poses = glyphs.make_glyphs(count, 0, size=size)
    assert images.shape == (count, 3, size, size) and images.dtype == torch.uint8
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert poses.shape == (count, 2, 3) and poses.dtype == torch.float32
    assert {t.device.type for t in (images, labels, poses)} == {"cpu"}


def test_several_chunks_are_one_set(monkeypatch):
    monkeypatch.setattr(glyphs, "CHUNK", 16)
    images, _, poses = glyphs.make_glyphs(40, seed=1)
    assert len(images.flatten(1).unique(dim=0)) == len(poses.flatten(1).unique(dim=0)) == 40
    assert images.flatten(1).float().std(dim=1).min() > 5  # none left empty


def test_classes_are_balanced_and_shuffled():
    labels = glyphs.make_glyphs(503, seed=0, size=16)[1]
    counts = labels.bincount(minlength=len(CLASSES))
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(labels, labels.sort().values)
    assert (labels[1:] - labels[:-1]).abs().ne(1).float().mean() > 0.7  # not 0, 1, 2 in turn either


def test_pictures_use_the_whole_range():
    images = glyphs.make_glyphs(300, seed=0)[0].float()
    assert images.min() == 0 and images.max() == 255
    assert 100 < images.mean() < 155
    assert images.mean(dim=(2, 3)).std(dim=1).median() > 10  # colours, not greys
    assert images.std(dim=(2, 3)).min() > 5


def test_poses_are_similarities_within_their_ranges():
    poses = glyphs.make_glyphs(2000, seed=5, size=16)[2].double()
    matrix, shift = poses[:, :, :2], poses[:, :, 2:]
    a, b, c, d = matrix.flatten(1).unbind(1)
    torch.testing.assert_close(a, d)
    torch.testing.assert_close(b, -c)
    zoom = (a**2 + c**2).sqrt()  # theta's scale: the inverse of the glyph's
    angle = torch.rad2deg(torch.atan2(c, a))
    centre = -torch.linalg.solve(matrix, shift)  # theta maps the glyph's centre to (0, 0)
    ranges = ((angle, -MAX_ANGLE, MAX_ANGLE), (1 / zoom, glyphs.MIN_SCALE, glyphs.MAX_SCALE),
              (centre[:, 0, 0], -MAX_SHIFT, MAX_SHIFT), (centre[:, 1, 0], -MAX_SHIFT, MAX_SHIFT))
    for values, low, high in ranges:
        uniform = stats.uniform(low - 1e-5, high - low + 2e-5)
        assert low - 1e-5 <= values.min() and values.max() <= high + 1e-5
        assert stats.kstest(values.numpy(), uniform.cdf).pvalue > 0.01
    reach = centre.abs().amax(dim=1)[:, 0] + GLYPH_RADIUS / zoom
    assert reach.max() <= 1 + 1e-5  # nothing cut off


def test_upright_glyphs_are_centred_and_fill_their_disc():
    resolution = 128
    masks = glyphs.draw_atlas(resolution).numpy()
    at = (2 * np.arange(resolution) + 1) / resolution - 1
    radius = np.hypot(at[:, None], at[None, :])
    pixel = 2 / resolution
    for mask in masks.reshape(-1, resolution, resolution):
        rows, columns = at[(mask > 0.5).any(axis=1)], at[(mask > 0.5).any(axis=0)]
        assert abs(rows.min() + rows.max()) < 2 * pixel
        assert abs(columns.min() + columns.max()) < 2 * pixel
        assert GLYPH_RADIUS - 3 * pixel < radius[mask > 0.5].max() < GLYPH_RADIUS + pixel
    assert masks.min() == 0 and masks.max() == 1


def test_every_font_ships_with_matplotlib_and_has_every_glyph():
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for name in FONTS:
        font = FT2Font(str(folder / f"{name}.ttf"))
        assert all(font.get_char_index(ord(char)) for char in CLASSES), name
        assert not any(word in font.style_name for word in ("Italic", "Oblique")), name


def test_pose_is_the_one_that_was_applied(sample, atlas):
    scores = {"as given": [], "wrong way": []}
    for image, label, theta in zip(*sample, strict=True):
        for key, pose in (("as given", theta), ("wrong way", inverse(theta))):
            scores[key].append(likeness(image, [warp(mask, pose) for mask in atlas[label]]))
    assert np.median(scores["as given"]) > 0.8 and min(scores["as given"]) > 0.3
    assert np.median(scores["wrong way"]) < 0.3  # so the measure can tell the two directions apart


def test_posed_masks_equal_scipy_to_the_pixel():
    poses = glyphs.make_glyphs(20, seed=2)[2]
    masks = glyphs.draw_atlas(2 * SIZE)[torch.arange(20) % 10, torch.arange(20) % len(FONTS)]
    posed = glyphs._pose_masks(masks, poses, SIZE)[:, 0].numpy()
    masks, poses = masks.double().numpy(), poses.double().numpy()
    for mask, theta, found in zip(masks, poses, posed, strict=True):
        expected = warp(mask, theta).reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_undoing_the_pose_sets_every_glyph_upright(sample, atlas):
    scores = {"undone": [], "as it is": [], "wrong way": []}
    disc = np.hypot(*np.meshgrid(*[(2 * np.arange(SIZE) + 1) / SIZE - 1] * 2)) < GLYPH_RADIUS
    for image, label, theta in zip(*sample, strict=True):
        for key, picture in (("undone", warp(image, inverse(theta))), ("as it is", image),
                             ("wrong way", warp(image, theta))):
            scores[key].append(likeness(picture[disc], atlas[label][:, disc]))
    assert np.median(scores["undone"]) > 0.9 and np.quantile(scores["undone"], 0.05) > 0.75
    assert min(scores["undone"]) > 0.3  # thin strokes on a busy ground
    assert np.median(scores["as it is"]) < 0.5
    assert np.median(scores["wrong way"]) < 0.3


def test_glyph_stands_out_from_its_background(sample, atlas):
    contrast = []
    for image, label, theta in zip(*sample, strict=True):
        mask = max((warp(m, theta) for m in atlas[label]), key=lambda m: abs(correlation(image, m)))
        ink = mask > min(0.8, mask.max() - 0.01)
        contrast.append(abs(image[ink].mean() - image[mask == 0].mean()))
    assert np.median(contrast) > 0.4 and min(contrast) > 0.1


def test_no_glyph_looks_like_another_or_itself_turned(atlas):
    def unit(vectors):
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    flat = atlas.reshape(-1, SIZE, SIZE)
    upright = unit(flat.reshape(len(flat), -1))
    degrees = np.arange(-180, 180, 10)
    turned = np.stack([ndimage.rotate(flat, d, axes=(1, 2), reshape=False, order=1)
                       for d in degrees])
    table = unit(turned.reshape(len(degrees) * len(flat), -1)) @ upright.T
    # (angle, turned class, its font, upright class, its font)
    # -> (angle, turned class, upright class, pairs of fonts)
    shape = (len(degrees), len(CLASSES), len(FONTS), len(CLASSES), len(FONTS))
    table = table.reshape(shape).transpose(0, 1, 3, 2, 4).reshape(len(degrees), 10, 10, -1)
    same = np.eye(10, dtype=bool)
    match = table[degrees == 0][0, same].max(axis=1)
    np.testing.assert_allclose(match, 1, atol=1e-4)  # it sees one
    others = table.max(axis=0)[~same]  # at the angle that makes two classes most alike
    # any two fonts; fonts on average
    assert others.max() < 0.85 and others.mean(axis=1).max() < 0.7
    itself = table[abs(degrees) >= 40].max(axis=0)[same]
    assert itself.max() < 0.8 and itself.mean(axis=1).max() < 0.65


def test_the_background_does_not_give_the_pose_away():
    images, _, poses = glyphs.make_glyphs(4000, seed=9)
    ends = slice(4), slice(-4, None)  # the glyph never gets to the corners
    corners = [images[:, :, y, x] for y in ends for x in ends]
    features = torch.cat([c.flatten(1) for c in corners], dim=1).double()
    features = torch.cat([features / 255, torch.ones(len(features), 1)], dim=1)
    angle = torch.atan2(poses[:, 1, 0], poses[:, 0, 0]).double()[:, None]
    fit = torch.linalg.lstsq(features[:3000], angle[:3000]).solution
    error = (features[3000:] @ fit - angle[3000:]).square().mean()
    assert error > 0.95 * angle[3000:].var()
