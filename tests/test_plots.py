"""Figures: what they show is what the model did, and they draw without a warning (warnings are errors here)."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from stn_cifar import plots
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.diagnostics import Survey, survey
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
    model = build_model(Config(device="cpu", transform="rotation", num_classes=3, **fields))
    with torch.no_grad():
        model.localization.regressor[-1].bias.fill_(np.pi / 2)
        model.classifier.head[-1].weight.zero_()
        model.classifier.head[-1].bias.copy_(torch.eye(3)[answer])
    return model


def drawn(figure):
    """`figure`, after all of it was drawn, as it must be without a warning."""
    assert type(figure) is Figure
    figure.savefig(io.BytesIO(), format="png")
    assert figure.get_size_inches()[0] * figure.dpi == 800
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
    assert plots.title_of(config, three, 0).endswith("epoch 0")  # before training, which is not: no epoch
    assert plots.title_of(config.replace(stn=False), three, 1) == "CIFAR-10 · tutorial (no transformer) · epoch 1"


def test_every_figure_carries_its_title(three):
    model = turning()
    for figure in (plots.pairs(model, three, TITLE, count=1), plots.strip(model, three, TITLE),
                   plots.curves(HISTORY, TITLE), plots.theta_histograms(survey(model, three.test.images), TITLE)):
        assert TITLE in [text.get_text() for text in figure.texts]
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
    model = turning().train(mode)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    plots.pairs(model, three, TITLE, count=1), plots.strip(model, three, TITLE)
    assert model.training == mode and torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


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
    return Survey(theta, *torch.ones(3, len(theta)))


def test_histograms_count_every_image_once():
    params = torch.stack([torch.linspace(0.5, 1, 200), *torch.zeros(3, 200)], dim=1)
    figure = drawn(plots.theta_histograms(seen_of(FAMILIES["similarity"].theta(params)), TITLE))
    by_name = {axes.get_title(): axes for axes in figure.axes}
    assert list(by_name) == ["rotation", "scale", "shear", "shift x", "shift y"]
    assert all(sum(bar.get_height() for bar in axes.patches) == 200 for axes in figure.axes)
    bars = [bar for bar in by_name["rotation"].patches if bar.get_height()]
    assert bars[0].get_x() == pytest.approx(28.648, abs=0.01)  # degrees
    assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(57.296, abs=0.01)
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


# ---- the families ---------------------------------------------------------------------------------------------------


def test_the_families_are_all_there_with_their_parameters(three):
    figure = drawn(plots.families(three.test.images[0]))
    assert [axes.get_title() for axes in figure.axes[:7]] == list(FAMILIES)
    counts = [int(re.match(r"(\d+) parameters?$", axes.get_xlabel())[1]) for axes in figure.axes[7:]]
    assert counts == [family.num_params for family in FAMILIES.values()]
    for above, below in zip(figure.axes[:7], figure.axes[7:], strict=True):
        np.testing.assert_allclose(shown(above), pixels_of(three.test.images[0]))
        assert np.abs(shown(below) - shown(above)).mean() > 0.02
