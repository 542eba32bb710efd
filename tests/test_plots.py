"""Figures: what they show is what the model did, and they draw without a warning (warnings are errors here)."""

import io
import math
import re
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.stats import binomtest

from stn_cifar import diagnostics, plots
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.diagnostics import Survey, survey
from stn_cifar.pictures import mean_images
from stn_cifar.stn import build_model
from stn_cifar.transforms import FAMILIES

TITLE = "CIFAR-10 · tutorial (affine) · epoch 3"
HISTORY = [dict(epoch=e, train_loss=2 / e, train_accuracy=0.1 * e, val_loss=3 / e, val_accuracy=0.05 * e)
           for e in (1, 2, 3)]


@pytest.fixture(autouse=True)
def nothing_is_left_to_pyplot():
    """A notebook shows a figure that pyplot knows a second time."""
    yield
    assert plt.get_fignums() == []


@pytest.fixture
def three():
    """30 pictures of three classes."""
    return small()


def small(channels=3, size=32, dtype=torch.uint8):
    images = torch.randint(256, (30, channels, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    train = Split(images, torch.arange(30) % 3)
    return Data(train, None, Split(images.flip(0), torch.arange(30) // 10), ("cat", "dog", "emu"), "CIFAR-10")


def turning(answer=1, **fields):
    """A model that turns every picture by 90 degrees and takes it for class `answer`."""
    model = answering([np.pi / 2], transform="rotation", **fields)
    with torch.no_grad():
        model.classifier.head[-1].weight.zero_()
        model.classifier.head[-1].bias.copy_(torch.eye(3)[answer])
    return model


def answering(params, **fields):
    """A model that answers `params` for every picture."""
    model = build_model(Config(device="cpu", num_classes=3, **fields))
    with torch.no_grad():
        model.localization.regressor[-1].bias.copy_(torch.as_tensor(params))
    return model


def drawn(figure):
    """`figure`, after all of it was drawn, as it must be without a warning, and with no word cut off."""
    assert type(figure) is Figure
    figure.savefig(io.BytesIO(), format="png")
    assert figure.get_size_inches()[0] * figure.dpi == 800
    words = [*figure.texts, *(word for axes in figure.axes if axes.get_visible() and axes.axison
                              for word in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts))]
    for word in words:
        if word.get_text():
            box = word.get_window_extent()
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= 801 and box.y1 <= figure.bbox.height + 1, word
    return figure


def texts(figure):
    """Everything written in a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def shown(axes):
    """The one picture in `axes` as float (H, W, C) in [0, 1]."""
    image, = axes.get_images()
    pixels = np.asarray(image.get_array(), dtype=np.float64) / image.get_clim()[1]
    return pixels if pixels.ndim == 3 else pixels[..., None]


def pixels_of(image):
    return image.permute(1, 2, 0).numpy() / (255 if image.dtype == torch.uint8 else 1)


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


# ---- titles ---------------------------------------------------------------------------------------------------------


def test_titles_name_data_set_preset_transformer_and_epoch(three):
    config = Config.preset("tutorial", device="cpu")
    assert plots.title_of(config, three, 50) == "CIFAR-10 · tutorial (affine) · epoch 50"
    assert plots.title_of(config.replace(transform="tps"), three) == "CIFAR-10 · tutorial (tps)"
    assert plots.title_of(config.replace(distortion="rts"), three) == "CIFAR-10, rts · tutorial (affine)"
    assert plots.title_of(config, three, 0).endswith("epoch 0")  # before training, which is not: no epoch
    assert plots.title_of(config.replace(stn=False), three, 1) == "CIFAR-10 · tutorial (no transformer) · epoch 1"


def test_every_figure_carries_its_title(three):
    model, seen = turning(), survey(turning(), three.test.images)
    known = dict(angle=dict(values=[0, 90], accuracy=[0.5, 0.2]))
    for figure in (plots.pairs(model, three, TITLE, count=1), plots.strip(model, three, TITLE),
                   plots.curves(HISTORY, TITLE), plots.theta_histograms(seen, TITLE),
                   plots.where(model, three, TITLE), plots.class_means(model, three, TITLE),
                   plots.mistakes(model, three, TITLE), plots.one(model, three.test.images[0], three.classes, TITLE),
                   plots.theta_bands([0], [diagnostics.quantiles(seen)], TITLE),
                   plots.confusion(torch.eye(3), three.classes, TITLE), plots.robustness(dict(a=known), TITLE),
                   plots.compare(HISTORY, HISTORY, 0.6, 0.5, TITLE)):
        title, look_for = figure.texts[:2]
        assert title.get_text() == TITLE and len(look_for.get_text()) > 20
    assert any("CIFAR-10" in text.get_text() for text in plots.samples(three, count=1).texts)
    assert "look here" in texts(plots.pairs(model, three, TITLE, "look here", count=1))


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_samples_are_the_first_training_images_of_each_class(three):
    figure = drawn(plots.samples(three, count=4))
    assert len(figure.axes) == 12
    for k, axes in enumerate(figure.axes):
        row, column = divmod(k, 4)
        np.testing.assert_allclose(shown(axes), pixels_of(three.train.images[3 * column + row]))  # labels 0, 1, 2, 0
    assert [axes.get_ylabel().strip() for axes in figure.axes[::4]] == ["cat", "dog", "emu"]


def test_pairs_show_the_original_and_what_the_classifier_sees_of_it(three):
    figure = drawn(plots.pairs(turning(), three, TITLE, count=2))
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == 3 * 2 * 2
    for k, (left, right) in enumerate(zip(visible[::2], visible[1::2], strict=True)):
        original = three.test.images[10 * (k // 2) + k % 2]  # labels: ten 0, ten 1, ten 2
        np.testing.assert_allclose(shown(left), pixels_of(original))
        np.testing.assert_allclose(shown(right), pixels_of(torch.rot90(original, 1, (1, 2))), atol=1e-4)


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_a_right_and_a_wrong_guess_are_told_apart_in_writing(three, answer):
    figure = plots.pairs(turning(answer), three, TITLE, count=2)
    guesses = [axes.get_title() for axes in figure.axes if axes.get_visible()][1::2]
    name = three.classes[answer]
    expected = [f"✓ {name}" if row == answer else f"✗ {name}" for row in (0, 0, 1, 1, 2, 2)]
    assert guesses == expected
    strip = plots.strip(turning(answer), three, TITLE)
    assert [axes.get_title() for axes in strip.axes] == ["cat", "dog", "emu", *expected[::2]]


def test_strip_shows_one_image_of_each_class_above_what_the_classifier_sees(three):
    figure = drawn(plots.strip(turning(), three, TITLE))
    above, below = figure.axes[:3], figure.axes[3:]
    for k, (before, after) in enumerate(zip(above, below, strict=True)):
        original = three.test.images[10 * k + 1]
        np.testing.assert_allclose(shown(before), pixels_of(original))
        np.testing.assert_allclose(shown(after), pixels_of(torch.rot90(original, 1, (1, 2))), atol=1e-4)


@pytest.mark.parametrize("mode", [True, False])
def test_drawing_leaves_the_model_and_the_random_state_as_they_were(three, mode):
    model = build_model(Config(device="cpu", model="compact", num_classes=3))  # its classifier has batches' statistics
    model.localization = torch.nn.Sequential(torch.nn.BatchNorm2d(3), model.localization)
    model.train(mode)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for draw in (plots.pairs, plots.strip, plots.where, plots.class_means, plots.mistakes):
        draw(model, three, TITLE)
    plots.one(model, three.test.images[0], three.classes, TITLE)
    assert model.training == mode and torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fields", [dict(channels=1), dict(size=28), dict(dtype=torch.float32),
                                    dict(channels=1, size=28)])
def test_grey_small_and_float_pictures_are_shown_as_they_are(fields):
    data = small(**fields)
    model = turning(channels=fields.get("channels", 3), image_size=fields.get("size", 32))
    for figure, first in ((plots.pairs(model, data, TITLE, count=1), data.test.images[0]),
                          (plots.strip(model, data, TITLE), data.test.images[1]),
                          (plots.samples(data, count=1), data.train.images[0])):
        np.testing.assert_allclose(shown(drawn(figure).axes[0]), pixels_of(first), atol=1e-6)


def test_contrast_is_not_stretched():
    data = small(channels=1)
    data.test.images.fill_(100)  # a flat picture, which imshow by itself would draw black
    figure = plots.pairs(turning(channels=1), data, TITLE, count=1)
    assert figure.axes[0].get_images()[0].get_clim() == (0, 255)
    np.testing.assert_allclose(shown(figure.axes[0]), 100 / 255)


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_curves_are_the_history():
    loss, accuracy = drawn(plots.curves(HISTORY, TITLE, test_accuracy=0.4)).axes
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for line, split in zip(axes.get_lines(), ("train", "val"), strict=False):
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [row[f"{split}_{quantity}"] for row in HISTORY]
    assert accuracy.get_ylim()[0] == 0  # the legend is at the bottom, where it hides no point
    star = accuracy.get_lines()[2]
    assert list(star.get_xdata()) == [3] and list(star.get_ydata()) == [0.4]
    assert any("40.0%" in text for text in legend_of(accuracy))


def test_lines_differ_in_more_than_colour():
    _, accuracy = plots.curves(HISTORY, TITLE).axes
    train, val = accuracy.get_lines()[:2]
    assert train.get_linestyle() != val.get_linestyle()
    assert {"training", "validation"} <= set(legend_of(accuracy))


@pytest.mark.parametrize(("title", "is_there"), [(TITLE, True), ("glyphs · tutorial (affine)", False)])
def test_the_original_experiment_is_compared_on_its_own_data_only(title, is_there):
    _, accuracy = plots.curves(HISTORY, title).axes
    assert any("original" in text and "57%" in text for text in legend_of(accuracy)) == is_there
    assert any(set(line.get_ydata()) == {0.57} for line in accuracy.get_lines()) == is_there


@pytest.mark.parametrize("title", [TITLE, "glyphs · tutorial (affine)"])
@pytest.mark.parametrize("history", [[], HISTORY[:1],
                                     [{k: v for k, v in row.items() if "val" not in k} for row in HISTORY]])
@pytest.mark.parametrize("test_accuracy", [None, 0.3])
def test_any_history_can_be_drawn(title, history, test_accuracy):
    loss, _ = drawn(plots.curves(history, title, test_accuracy)).axes
    ticks = [tick for tick in loss.get_xticks() if loss.get_xlim()[0] <= tick <= loss.get_xlim()[1]]
    assert ticks and all(float(tick).is_integer() for tick in ticks)


# ---- theta ----------------------------------------------------------------------------------------------------------


def seen_of(theta):
    """A Survey with these answers of which there is nothing else to say."""
    one = torch.ones(len(theta))
    return Survey(theta, one, 0 * one, one, one, 0 * one, one)


def test_histograms_count_every_image_once():
    params = torch.stack([torch.linspace(0.5, 1, 200), *torch.zeros(3, 200)], dim=1)
    figure = drawn(plots.theta_histograms(seen_of(FAMILIES["similarity"].theta(params)), TITLE))
    by_name = {axes.get_title(): axes for axes in figure.axes}
    assert list(by_name) == ["rotation", "scale", "shear", "shift x", "shift y"]
    assert all(sum(bar.get_height() for bar in axes.patches) == 200 for axes in figure.axes)
    bars = [bar for bar in by_name["rotation"].patches if bar.get_height()]
    assert bars[0].get_x() == pytest.approx(28.648, abs=bars[0].get_width())  # degrees
    assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(57.296, abs=0.01)
    for axes in figure.axes:  # the identity is always shown
        assert axes.get_xlim()[0] <= axes.get_lines()[0].get_xdata()[0] <= axes.get_xlim()[1]
    still = {name: axes.get_lines()[0].get_xdata()[0] for name, axes in by_name.items()}
    assert still == {"rotation": 0, "scale": 1, "shear": 0, "shift x": 0, "shift y": 0}


@pytest.mark.parametrize("spread", [1e-6, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
def test_histograms_of_any_family_even_where_all_answers_are_nearly_one(name, spread):
    # a rotation's scale is 1 to rounding: numpy finds no 40 bins in so narrow a range of float32
    identity = FAMILIES[name].identity()
    params = identity + spread * torch.randn(500, len(identity), generator=torch.Generator().manual_seed(0))
    figure = plots.theta_histograms(seen_of(FAMILIES[name].theta(params)), TITLE)
    assert all(sum(bar.get_height() for bar in axes.patches) == 500 for axes in figure.axes)


def test_histograms_of_a_model_without_transformer(three):
    model = build_model(Config(device="cpu", stn=False, num_classes=3))
    drawn(plots.theta_histograms(survey(model, three.test.images), TITLE))
    drawn(plots.pairs(model, three, TITLE, count=1))
    assert [axes.get_xlabel() for axes in drawn(plots.where(model, three, TITLE)).axes] == ["size 1.00, 0°"] * 3
    means = drawn(plots.class_means(model, three, TITLE)).axes
    assert [axes.get_xlabel() for axes in means[:3]] == [axes.get_xlabel() for axes in means[3:]]


def test_the_verdict_stands_below_the_histograms():
    seen = seen_of(FAMILIES["rotation"].theta(torch.linspace(0, 1, 50)[:, None]))
    assert any("no sign of collapse" in text for text in texts(drawn(plots.theta_histograms(seen, TITLE))))
    one = torch.ones(50)
    wrong = seen._replace(outside=one, scale=2 * one, determinant=0 * one, flipped=one, variance_left=0 * one)
    figure = drawn(plots.theta_histograms(wrong, TITLE))
    written = " ".join(" ".join(texts(figure)).split())
    assert all(text in written for text in diagnostics.verdict(wrong)) and len(diagnostics.verdict(wrong)) == 4
    assert "no sign" not in written
    # it has a place of its own below the axes
    boxes = [text.get_window_extent() for text in figure.texts[2:]]
    assert max(box.y1 for box in boxes) <= min(axes.get_tightbbox().y0 for axes in figure.axes) + 1
    assert all(above.y0 >= below.y1 - 3 for above, below in pairwise(boxes))


def test_bands_are_the_quantiles_of_each_epoch():
    bands = [{name: [q - 2, q - 1, q + 0.0, q + 1, q + 3] for name in plots.QUANTITIES} for q in (0, 5, -1)]
    bands[1]["scale"] = [0.5, 0.75, 1.25, 1.5, 2]
    figure = drawn(plots.theta_bands([0, 1, 2], bands, TITLE))
    by_name = dict(zip(plots.QUANTITIES, figure.axes, strict=True))
    assert [axes.get_title() for axes in figure.axes] == ["rotation", "scale", "shear", "shift x", "shift y",
                                                          "outside the picture"]
    for name, axes in by_name.items():
        still, median = axes.get_lines()
        assert set(still.get_ydata()) == {1 if name == "scale" else 0}
        assert list(median.get_xdata()) == [0, 1, 2]
        assert list(median.get_ydata()) == [band[name][2] for band in bands]
        for band, (low, high) in zip(axes.collections, ((0, 4), (1, 3)), strict=True):
            corners = {tuple(point) for point in band.get_paths()[0].vertices}
            expected = {(epoch, values[name][k]) for epoch, values in enumerate(bands) for k in (low, high)}
            assert {(float(x), float(y)) for x, y in expected} <= corners
        low, high = axes.get_ylim()
        assert low <= min(band[name][0] for band in bands) and high >= max(band[name][4] for band in bands)


@pytest.mark.parametrize("epochs", [[], [0], [7]])
def test_bands_of_no_epoch_or_one(epochs, three):
    bands = [diagnostics.quantiles(survey(turning(), three.test.images))] * len(epochs)
    rotation = drawn(plots.theta_bands(epochs, bands, TITLE)).axes[0]
    for epoch in epochs:
        assert rotation.get_lines()[1].get_ydata() == pytest.approx([90, 90])
        assert rotation.get_xlim()[0] < epoch < rotation.get_xlim()[1]


def test_rounding_errors_are_not_blown_up():
    seen = seen_of(FAMILIES["rotation"].theta(1e-7 * torch.randn(50, 1, generator=torch.Generator().manual_seed(0))))
    for figure in (plots.theta_histograms(seen, TITLE),
                   plots.theta_bands([0, 1], [diagnostics.quantiles(seen)] * 2, TITLE)):
        drawn(figure)
        for axes in figure.axes:
            low, high = axes.get_xlim() if len(figure.axes) == 5 else axes.get_ylim()
            assert high - low >= 0.05


# ---- the families ---------------------------------------------------------------------------------------------------


def test_the_families_are_all_there_with_their_parameters(three):
    figure = drawn(plots.families(three.test.images[0]))
    assert [axes.get_title() for axes in figure.axes[:7]] == list(FAMILIES)
    counts = [int(re.match(r"(\d+) parameters?$", axes.get_xlabel())[1]) for axes in figure.axes[7:]]
    assert counts == [family.num_params for family in FAMILIES.values()]
    for above, below in zip(figure.axes[:7], figure.axes[7:], strict=True):
        np.testing.assert_allclose(shown(above), pixels_of(three.test.images[0]))
        assert np.abs(shown(below) - shown(above)).mean() > 0.02


@pytest.mark.parametrize("channels", [1, 3])
def test_the_diagram_shows_a_real_warp(channels):
    # a picture without fine detail, which two interpolations would blur
    coarse = torch.rand(1, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)[0]
    figure = drawn(plots.diagram((picture * 255).round().to(torch.uint8)))
    before, after = (axes for axes in figure.axes[0].child_axes)
    assert {"localization\nnetwork", "grid\ngenerator", "sampler", "classifier", "theta"} <= set(texts(figure))
    matrix = next(text for text in texts(figure) if re.fullmatch(r"[\s\d.-]+", text))
    theta = np.array([[float(number) for number in line.split()] for line in matrix.splitlines()])
    assert theta.shape == (2, 3) and math.degrees(math.atan2(theta[1, 0], theta[0, 0])) == pytest.approx(25.8, abs=1)
    # the input is the picture, turned; the output reads it at theta: the picture upright, and nearer by theta's scale
    scale = math.hypot(theta[0, 0], theta[1, 0])
    assert 0.6 < scale < 0.9
    near = FAMILIES["attention"].grid(torch.tensor([[math.log(scale), 0, 0]]), 32)
    expected = pixels_of(torch.nn.functional.grid_sample(picture[None], near, align_corners=False)[0])
    assert np.abs(shown(after) - expected).mean() < 0.02
    assert np.abs(shown(before) - pixels_of(picture)).mean() > 0.05  # it was turned
    corners = [line.get_xydata()[0] for line in before.get_lines() if line.get_linewidth() == 1.8]
    upper_left = ((theta @ [-1, -1, 1] + 1) * 32 - 1) / 2
    assert min(np.abs(corner - upper_left).max() for corner in corners) < 0.2


# ---- where it looks -------------------------------------------------------------------------------------------------


SOME = dict(
    translation=[0.3, -0.2], rotation=[2.0], attention=[-0.5, 0.2, 0.4], similarity=[-0.4, 0.3, 0.1, 0.2],
    affine=[0.9, 0.4, 0.1, -0.2, 0.7, -0.3], projective=[0.9, 0.2, 0.1, -0.1, 0.8, 0.0, 0.4, -0.3],
    tps=(0.3 * torch.randn(32, generator=torch.Generator().manual_seed(0))).tolist(),
)


def pixels_at(family, params, x, y):
    """Where the output's point (x, y) is read, in pixels of a picture of 32, worked out in numpy."""
    theta = FAMILIES[family].theta(torch.tensor([params]))[0].double().numpy()
    if family == "tps":  # passes through its control points exactly; they lie at -1, -1/3, 1/3 and 1
        column, row = (round((c + 1) * 1.5) for c in (x, y))
        point = theta[4 * row + column]
    else:
        point = theta @ [x, y, 1]
        point = point[:2] / (point[2] if len(point) == 3 else 1)
    return ((point + 1) * 32 - 1) / 2


def edges(axes):
    """The thick lines over a picture: the region's upper, left, lower and right edge, then its handle."""
    return [line.get_xydata() for line in axes.get_lines() if line.get_linewidth() == 1.8]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outline_is_where_theta_puts_the_output(three, family):
    figure = drawn(plots.where(answering(SOME[family], transform=family), three, TITLE))
    for k, axes in enumerate(figure.axes):
        np.testing.assert_allclose(shown(axes), pixels_of(three.test.images[10 * k + 1]))  # the pictures of the strip
        assert axes.get_images()[0].get_extent() == [-0.5, 31.5, 31.5, -0.5]
        upper, left, lower, right, handle = edges(axes)
        for line, (x0, y0), (x1, y1) in ((upper, (-1, -1), (1, -1)), (left, (-1, -1), (-1, 1)),
                                         (lower, (-1, 1), (1, 1)), (right, (1, -1), (1, 1))):
            np.testing.assert_allclose(line[0], pixels_at(family, SOME[family], x0, y0), atol=0.05)
            np.testing.assert_allclose(line[-1], pixels_at(family, SOME[family], x1, y1), atol=0.05)
        inside = upper[len(upper) // 2] if family == "tps" else pixels_at(family, SOME[family], 0, -1)
        np.testing.assert_allclose(handle[0], inside, atol=0.05)  # it stands on the middle of the upper edge
        across = handle[0] - lower[len(lower) // 2]
        np.testing.assert_allclose(handle[1] - handle[0], across / 8, atol=0.05)
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        points = np.concatenate([upper, left, lower, right, handle])
        assert low < points.min() and points.max() < high and (bottom, top) == (high, low)  # y points down
    lines = len([line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.6])
    assert lines == (6 if family == "tps" else 0)  # a bent one has its grid drawn


@pytest.mark.parametrize(("family", "params", "words"), [
    ("similarity", [math.radians(30), math.log(1.25), 0.0, 0.0], "size 1.25, 30°"),
    ("rotation", [-math.radians(120)], "size 1.00, -120°"),
    ("affine", [1.0, 0, 0, 0, -1, 0], "size 1.00, 0°, mirrored"),
    ("affine", [-1.0, 0, 0, 0, -1, 0], "size 1.00, 180°"),
    ("tps", [0.0] * 32, "size 1.00, 0°"),
])
def test_size_and_turn_are_written_below(three, family, params, words):
    figure = plots.where(answering(params, transform=family), three, TITLE)
    assert {axes.get_xlabel().replace("-180", "180") for axes in figure.axes} == {words}


def test_size_is_that_of_the_survey(three):
    model = answering(SOME["projective"], transform="projective")
    size = survey(model, three.test.images[:1]).scale.item()
    words = plots.where(model, three, TITLE).axes[0].get_xlabel()
    assert float(re.match(r"size ([\d.]+),", words)[1]) == pytest.approx(size, abs=0.02)


@pytest.mark.parametrize(("shift", "sides"), [([9.0, -4.0], (1, -1)), ([-9.0, 0.5], (-1, 1)), ([0.3, 8.0], (1, 1))])
def test_a_region_out_of_sight_is_pointed_at(three, shift, sides):
    figure = drawn(plots.where(answering(shift, transform="translation"), three, TITLE))
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert high - low < 32 * 5.5  # so the picture can still be seen
        arrow, = axes.texts
        step = np.array(arrow.xy) - np.array(arrow.get_position())
        assert tuple(np.sign(step)) == sides
        assert step[0] / step[1] == pytest.approx(shift[0] / shift[1], rel=1e-4)
        assert max(low, *arrow.xy) <= high + 1e-3 and min(arrow.xy) >= low - 1e-3
    near = plots.where(answering([0.5, 0.5], transform="translation"), three, TITLE)
    assert not any(axes.texts for axes in near.axes)


def test_one_region_far_out_does_not_shrink_all_pictures(three):
    model = build_model(Config(device="cpu", transform="attention", num_classes=3))
    three.test.images[1] = 255
    answers = torch.tensor([[math.log(40), 0, 0], [0.0, 0, 0], [0.0, 0, 0]])
    model.localization.forward = lambda images: answers[: len(images)]
    low, high = plots.where(model, three, TITLE).axes[0].get_xlim()
    assert high - low < 32 * 3.5


def test_several_images_of_each_class_and_no_empty_frames(three):
    figure = drawn(plots.where(turning(), three, TITLE, count=3))
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in visible] == ["cat", "dog", "emu"] * 3
    for k, axes in enumerate(visible):
        np.testing.assert_allclose(shown(axes), pixels_of(three.test.images[10 * (k % 3) + 1 + k // 3]))


# ---- means ----------------------------------------------------------------------------------------------------------


def test_mean_images_are_the_means_of_each_class(three):
    three.test.labels[:4] = 2  # not all classes have as many
    before, after = mean_images(turning(), three, batch_size=7)
    images, labels = three.test.images.numpy() / 255, three.test.labels.numpy()
    for k in range(3):
        mean = images[labels == k].mean(axis=0)
        np.testing.assert_allclose(before[k].numpy(), mean, atol=1e-5)
        np.testing.assert_allclose(after[k].numpy(), np.rot90(mean, axes=(1, 2)), atol=1e-4)


def test_class_means_show_the_means_and_say_how_much_contrast_they_have(three):
    model = answering([math.log(2), 0, 0], transform="attention")
    three.test.images.copy_(three.test.images // 4 + 90)  # pale, as means of many pictures are
    figure = drawn(plots.class_means(model, three, TITLE))
    means = [part.double().numpy() for part in mean_images(model, three)]
    told, = [text for text in re.findall(r"stretched (\d+) times", " ".join(texts(figure)))] or ["1"]
    contrasts = []
    for row, (axes, mean) in enumerate(zip((figure.axes[:3], figure.axes[3:]), means, strict=True)):
        for k in range(3):
            contrasts.append(np.mean([255 * channel.std() for channel in mean[k]]))
            assert float(axes[k].get_xlabel()) == pytest.approx(contrasts[-1], abs=0.051)
            middle = mean[k].mean(axis=(1, 2), keepdims=True)
            stretched = np.clip(middle + int(told) * (mean[k] - middle), 0, 1)
            np.testing.assert_allclose(shown(axes[k]), stretched.transpose(1, 2, 0), atol=1e-4)
        assert axes[0].get_ylabel().strip() == ("before", "after")[row]
    assert int(told) > 2
    whole = np.mean(contrasts[:3]), np.mean(contrasts[3:])
    written = " ".join(" ".join(texts(figure)).split())
    assert f"mean {whole[0]:.1f} before and {whole[1]:.1f} after ({whole[1] / whole[0]:.2f} times)" in written


def test_stretching_cuts_nothing_off(three):
    figure = plots.class_means(turning(), three, TITLE)
    for axes in figure.axes:
        pixels = shown(axes)
        assert pixels.min() > 0 and pixels.max() < 1


def test_means_of_flat_pictures_have_no_contrast(three):
    three.test.images.fill_(90)
    assert {axes.get_xlabel() for axes in drawn(plots.class_means(turning(), three, TITLE)).axes} == {"0.0"}


# ---- guesses --------------------------------------------------------------------------------------------------------


class Brightness(torch.nn.Module):
    """Takes a picture for class 1, the more surely the brighter it is."""

    def forward(self, images):
        return torch.stack([torch.zeros(len(images)), 4 + images.mean(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)


def sure_of(grey):
    """The probability that Brightness gives class 1 for a flat picture of `grey`."""
    logit = math.exp(4 + np.mean([(grey / 255 - m) / s for m, s in ((0.4914, 0.2470), (0.4822, 0.2435),
                                                                   (0.4465, 0.2616))]))
    return logit / (logit + 2)


def by_brightness(three, greys):
    """Data whose test images are flat, of these greys, and a model that goes by them; turned by 90 degrees."""
    images = torch.tensor(greys, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    model = turning()
    model.classifier = Brightness()
    return model, replace(three, test=Split(images, torch.arange(len(greys)) % 3))


def test_mistakes_are_the_wrong_guesses_from_the_surest_on(three):
    greys = [10, 250, 90, 200, 40, 255, 130, 0, 30]
    model, data = by_brightness(three, greys)
    figure = drawn(plots.mistakes(model, data, TITLE, count=4, batch_size=4))
    visible = [axes for axes in figure.axes if axes.get_visible()]
    expected = sorted(((sure_of(grey), k) for k, grey in enumerate(greys) if k % 3 != 1), reverse=True)[:4]
    assert len(visible) == 8
    for (sure, k), left, right in zip(expected, visible[::2], visible[1::2], strict=True):
        assert left.get_title() == three.classes[k % 3] and right.get_title() == f"✗ dog {sure:.0%}"
        np.testing.assert_allclose(shown(left), greys[k] / 255, atol=1e-6)
        np.testing.assert_allclose(shown(right), greys[k] / 255, atol=1e-4)
    assert "6 of 9 test images" in figure.texts[1].get_text()


def test_mistakes_show_what_the_classifier_saw(three):
    figure = plots.mistakes(turning(), three, TITLE, count=2)
    left, right = figure.axes[:2]
    np.testing.assert_allclose(np.rot90(shown(left)), shown(right), atol=1e-4)


def test_no_mistakes_and_few(three):
    model, data = by_brightness(three, [10, 20, 30, 40])
    none = replace(data, test=Split(data.test.images, torch.ones(4, dtype=torch.int64)))
    assert "None of 4" in drawn(plots.mistakes(model, none, TITLE)).texts[1].get_text()
    few = drawn(plots.mistakes(model, data, TITLE))
    assert sum(axes.get_visible() for axes in few.axes) == 2 * 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_one_picture_with_its_region_and_probabilities(dtype):
    picture, classes = small(dtype=dtype).test.images[4], ("cat", "dog", "a very long name of a class")
    model = turning(answer=2)
    figure = drawn(plots.one(model, picture, classes, TITLE))
    left, middle, right = figure.axes
    np.testing.assert_allclose(shown(left), pixels_of(picture), atol=1e-6)
    np.testing.assert_allclose(shown(middle), pixels_of(torch.rot90(picture, 1, (1, 2))), atol=1e-4)
    np.testing.assert_allclose(edges(left)[0][[0, -1]], [[31.5, -0.5], [31.5, 31.5]], atol=0.05)  # read from the right
    probabilities = np.exp([0, 0, 1]) / np.exp([0, 0, 1]).sum()
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names[0].startswith("a very long") and set(names[1:]) == {"cat", "dog"}
    assert right.get_ylim()[0] > right.get_ylim()[1]  # the surest is on top
    widths = [bar.get_width() for bar in right.patches]
    assert widths == pytest.approx(sorted(probabilities, reverse=True), abs=1e-5)
    assert [text.get_text() for text in right.texts] == [f"{width:.0%}" for width in widths]


def luminance(colour):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return np.dot(channels, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("percent", [True, False])
def test_confusion_counts_true_classes_in_rows(three, percent):
    counts = torch.tensor([[6, 2, 0], [1, 9, 0], [0, 0, 0]])
    axes, = drawn(plots.confusion(counts.tolist(), three.classes, TITLE, percent=percent)).axes
    cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    expected = {(0, 0): ("75", "6"), (1, 0): ("25", "2"), (0, 1): ("10", "1"), (1, 1): ("90", "9")}  # (column, row)
    assert cells == {place: told[0 if percent else 1] for place, told in expected.items()}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(three.classes)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(three.classes)
    assert (axes.get_xlabel(), axes.get_ylabel().split(",")[0]) == ("guess", "truth")
    assert {patch.get_xy() for patch in axes.patches} == {(k - 0.5, k - 0.5) for k in range(3)}  # framed


def test_confusion_names_the_most_frequent_mistake(three):
    counts = torch.tensor([[90, 5, 5], [1, 3, 2], [0, 30, 70]])
    text = plots.confusion(counts, three.classes, TITLE).texts[1].get_text()
    assert "dog for emu, 33.3%" in text  # 2 of 6, though 30 emus of 100 are more in number
    assert "No mistake" in plots.confusion(torch.eye(3), three.classes, TITLE).texts[1].get_text()


def test_confusion_is_legible_on_any_colour():
    counts = torch.zeros(50, 50, dtype=torch.int64)
    counts[:, 0], counts[:, 1] = torch.arange(50), 100 - torch.arange(50)  # all shares in whole percent
    axes, = plots.confusion(counts, tuple(map(str, range(50))), TITLE).axes
    image, = axes.get_images()
    assert len(axes.texts) == 99
    for text in axes.texts:
        column, row = text.get_position()
        ground = image.cmap(image.norm(image.get_array()[row, column]))
        light, dark = sorted([luminance(text.get_color()), luminance(ground)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (row, column)  # WCAG 2.2's minimum for text


# ---- robustness and comparison --------------------------------------------------------------------------------------


KNOWN = dict(angle=dict(values=[-90, 0, 90], accuracy=[0.3, 0.6, 0.2]),
             shift_x=dict(values=[-0.5, 0.0], accuracy=[0.5, 0.61]),
             scale=dict(values=[0.5, 1.0, 2.0], accuracy=[0.4, 0.62, 0.1]))


def test_robustness_draws_each_arm_and_its_accuracy_undistorted():
    worse = {name: dict(values=part["values"], accuracy=[a / 2 for a in part["accuracy"]])
             for name, part in KNOWN.items()}
    figure = drawn(plots.robustness({"with": KNOWN, "without": worse}, TITLE, chance=0.25))
    assert len(figure.axes) == 3
    for axes, (quantity, reference) in zip(figure.axes, dict(angle=0.6, shift_x=0.61, scale=0.62).items(), strict=True):
        first, first_level, second, second_level, chance = axes.get_lines()
        assert list(first.get_xdata()) == KNOWN[quantity]["values"]
        assert list(first.get_ydata()) == KNOWN[quantity]["accuracy"]
        assert list(second.get_ydata()) == worse[quantity]["accuracy"]
        assert set(first_level.get_ydata()) == {reference} and set(second_level.get_ydata()) == {reference / 2}
        assert set(chance.get_ydata()) == {0.25}
        assert axes.get_ylim() == (0, pytest.approx(0.1 + max(max(k["accuracy"]) for k in KNOWN.values())))
    assert figure.axes[2].get_xscale() == "log"
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["with", "without"]


def test_arms_differ_in_more_than_colour():
    arms = {f"arm {k}": KNOWN for k in range(8)}
    lines = [line for line in drawn(plots.robustness(arms, TITLE)).axes[0].get_lines() if line.get_label() in arms]
    looks = [(line.get_linestyle(), line.get_marker()) for line in lines]
    assert len(lines) == len(set(looks)) == len(plots.STYLES) == 8


def test_what_is_left_of_a_turn_is_drawn_as_shares_of_the_images():
    upright, upside_down = [30, *[0] * 34, 10], [0, *[0] * 34, 5]
    figure = drawn(plots.residual_angles(dict(a=upright, b=upside_down), TITLE))
    axes, = figure.axes
    first, second = (patch.get_data() for patch in axes.patches)
    assert first.values.tolist() == pytest.approx([0.75, *[0] * 34, 0.25]) and second.values[-1] == 1
    assert first.edges.tolist() == list(range(0, 181, 5))
    chance, = axes.get_lines()
    assert set(chance.get_ydata()) == {5 / 180}  # a turn at random
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert figure.texts[0].get_text() == TITLE


def test_without_the_reference_none_is_drawn():
    figure = plots.robustness(dict(a=dict(angle=dict(values=[10, 20], accuracy=[0.3, 0.2]))), TITLE)
    assert len(figure.axes[0].get_lines()) == 2  # the arm, and chance


def test_comparison_shows_both_runs_and_what_their_test_can_tell():
    others = [dict(epoch=e, train_loss=1, train_accuracy=0.2 * e) for e in (1, 2)]
    figure = drawn(plots.compare(HISTORY, others, 0.601, 0.583, TITLE, images=1000))
    during, test = figure.axes
    with_line, without_line = during.get_lines()
    assert list(with_line.get_ydata()) == [row["train_accuracy"] for row in HISTORY]  # as only one has validation
    assert list(without_line.get_ydata()) == [0.2, 0.4]
    assert with_line.get_linestyle() != without_line.get_linestyle()
    assert during.get_ylabel() == "training accuracy"
    for name, right, label in zip(("with transformer", "without"), (601, 583), test.get_yticklabels(), strict=True):
        low, high = binomtest(right, 1000).proportion_ci(method="wilson")
        assert label.get_text() == f"{name}\n{right / 1000:.1%}\n({low:.1%} to {high:.1%})"
    ends = sorted(x for bar in test.collections for segment in bar.get_segments() for x, _ in segment)
    expected = [end for right in (601, 583) for end in binomtest(right, 1000).proportion_ci(method="wilson")]
    assert ends == pytest.approx(sorted(expected), abs=1e-6)
    assert "test images only" in figure.texts[1].get_text() and "seed" in figure.texts[1].get_text()
    assert test.get_xlabel() == "accuracy on 1,000 test images"


def test_comparison_prefers_validation_where_both_have_it():
    during, _ = plots.compare(HISTORY, HISTORY[:1], 0.5, 0.4, TITLE).axes
    assert [list(line.get_ydata()) for line in during.get_lines()] == [[row["val_accuracy"] for row in HISTORY],
                                                                     [HISTORY[0]["val_accuracy"]]]
    assert during.get_ylabel() == "validation accuracy"


@pytest.mark.parametrize(("histories", "accuracies"), [(([], []), (0.0, 1.0)), ((HISTORY[:1], []), (0.1, 0.1))])
def test_any_two_runs_can_be_compared(histories, accuracies):
    drawn(plots.compare(*histories, *accuracies, TITLE, images=10))


# ---- long names -----------------------------------------------------------------------------------------------------


def test_long_names_and_titles_stay_on_the_page(three):
    data = replace(three, classes=tuple(f"{name} of the far-away countryside" for name in three.classes))
    title = "CIFAR-10 · tutorial with a name that somebody made rather too long (similarity) · epoch 100"
    model = turning()
    drawn(plots.pairs(model, data, title, count=1))
    drawn(plots.mistakes(model, data, title, count=3))
    for draw in (plots.strip, plots.where, plots.class_means):
        drawn(draw(model, data, title))
    drawn(plots.one(model, data.test.images[0], data.classes, title))
    figure = drawn(plots.confusion(torch.ones(3, 3), data.classes, title))
    assert figure.texts[0].get_text() == title  # smaller, not cut
