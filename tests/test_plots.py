"""Figures: what they show is what the model did, they draw whatever the data, in their own style.

Warnings are errors here.
"""

import base64
import io
import math
import re
from dataclasses import replace
from itertools import pairwise

import IPython.display
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from scipy.stats import binomtest

from stn_cifar import diagnostics, plots
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.diagnostics import Statistics, statistics
from stn_cifar.plots.curves import NUMBERED, QUANTITIES
from stn_cifar.plots.images import examples, mean_images
from stn_cifar.spatial_transformer import initialize_output
from stn_cifar.stn import STNClassifier, build_model
from stn_cifar.transforms import FAMILIES

plt.switch_backend("agg")  # which matplotlib would choose later, and call it a change
TITLE = "CIFAR-10 · tutorial (affine) · epoch 3"
HISTORY = [dict(epoch=e, train_loss=2 / e, train_accuracy=0.1 * e, val_loss=3 / e,
                val_accuracy=0.05 * e) for e in (1, 2, 3)]
MEASURED = dict(angle=dict(values=[-90, 0, 90], accuracy=[0.3, 0.6, 0.2]),
                shift_x=dict(values=[-0.5, 0.0], accuracy=[0.5, 0.61]),
                scale=dict(values=[0.5, 1.0, 2.0], accuracy=[0.4, 0.62, 0.1]))
WITH_A_MODEL = ("strip", "pairs", "mistakes", "turned_and_upright", "sampled_regions",
                "class_means")


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """A notebook shows a figure that pyplot knows a second time; settings are the user's."""
    before = matplotlib.rcParams.copy()
    yield
    assert plt.get_fignums() == [] and matplotlib.rcParams == before


@pytest.fixture
def three():
    """12 images of three classes."""
    return small()


def small(channels=3, size=32, classes=3, images=12):
    pixels = torch.randint(256, (images, channels, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images)
    names = ("cat", "dog", "emu") if classes == 3 else tuple(f"class {k}" for k in range(classes))
    return Data(Split(pixels, labels % classes), None,
                Split(pixels.flip(0), labels * classes // images), names, "CIFAR-10")


def predicting(params, data, **fields):
    """A model that predicts `params` for every image."""
    model = build_model(Config(device="cpu", **fields), data)
    initialize_output(model.transformer.localization, torch.as_tensor(params))
    return model


def turning(data, answer=1, **fields):
    """A model that turns every image by 90 degrees, and predicts class `answer`."""
    model = predicting([np.pi / 2], data, transform="rotation", **fields)
    initialize_output(model.classifier, torch.eye(len(data.classes))[answer])
    return model


def figures_of(data, model):
    """Name -> a figure of each public kind that shows something of `data` or `model`."""
    figures = {name: getattr(plots, name)(model, data) for name in WITH_A_MODEL}
    image, n = data.test.images[0], len(data.classes)
    return figures | dict(
        samples=plots.samples(data),
        single_image=plots.single_image(model, image, data.classes, TITLE),
        theta_histograms=plots.theta_histograms(statistics(model, data.test.images), TITLE),
        confusion=plots.confusion(torch.eye(n) + 1, data.classes, TITLE),
        families=plots.families(image))


def drawn(figure):
    """`figure`, once all of it was drawn, without a warning, 800 pixels wide, no word cut off."""
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    assert figure.bbox.width == 800
    words = list(figure.texts)
    for axes in figure.axes:
        words += axes.texts
        words += [axes.title, axes.xaxis.label, axes.yaxis.label] * axes.axison
    for word in words:
        if word.get_text():
            box = word.get_window_extent()
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= 801, word
            assert box.y1 <= figure.bbox.height + 1, word
    return figure


def pixels(figure, **options):
    """`figure` as it is saved, (H, W, 3)."""
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    return np.asarray(Image.open(content).convert("RGB"))


def texts(figure):
    """Everything written in a figure."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(" ".join(text.get_text() for text in found).split())


def shown(figure):
    """The images on a page of images, in order."""
    return figure.axes[0].get_images()


def row_names(figure):
    return [text.get_text() for text in figure.axes[0].texts[len(shown(figure)):]]


def captions(figure):
    """Their captions; what else is written on the page comes after them."""
    return [text.get_text() for text in figure.axes[0].texts[:len(shown(figure))]]


def assert_shows(picture, image):
    """`picture`, or the one in these axes, is `image`, (C, H, W), uint8 or float in [0, 1]."""
    if hasattr(picture, "get_images"):
        picture, = picture.get_images()
    expected = image.double() / (255 if image.dtype == torch.uint8 else 1)
    expected = expected.expand(3, -1, -1).permute(1, 2, 0)
    np.testing.assert_allclose(np.asarray(picture.get_array()) / 255, expected, atol=0.0045)


def titles(axes):
    return [a.get_title() for a in axes]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# ---- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 3), (3, 64, 43)])
def test_every_figure_of_any_data(channels, size, classes):
    data = small(channels, size, classes, images=classes + 10)
    model = predicting([0.9, 0.2, 0.1, -0.2, 1.1, 0.0], data)
    figures = figures_of(data, model)
    here = {name for name in plots.__all__ if callable(getattr(plots, name))}
    assert set(figures) == here - {
        "curves", "compare", "theta_bands", "robustness", "rotation_errors",  # which see no data
        "Film", "Live", "titled_figure", "first_of_each_class", "light_png", "own_style", "save",
        "title_of"}
    for name, figure in figures.items():
        title, note = drawn(figure).texts[:2]
        assert len(title.get_text()) > 10 and len(note.get_text()) > 20, name
    for name in WITH_A_MODEL:
        assert figures[name].texts[0].get_text() == "CIFAR-10 · tutorial (affine)"
    some = f"10 of {classes} classes"
    assert all((some in texts(figures[name])) == (classes == 43) for name in ("pairs", "samples"))


@pytest.mark.parametrize("size", [8, 96])
def test_images_of_any_size_are_drawn(size):
    data = small(size=size, images=3)
    model = build_model(Config(device="cpu", model="separable", transform="rotation"), data)
    for name in WITH_A_MODEL:
        assert len(getattr(plots, name)(model, data).findobj(AxesImage)) >= 3


@pytest.mark.parametrize("labels", [[0, 0, 2, 0, 0, 2, 2], [1] * 7, [1]])
def test_what_there_is_is_drawn(three, labels):
    test = Split(three.test.images[:len(labels)], torch.tensor(labels))
    data = replace(three, train=test, test=test)
    model = turning(data)
    for name in WITH_A_MODEL:
        drawn(getattr(plots, name)(model, data))
    left = sorted(labels)
    assert captions(plots.strip(model, data))[:len(set(left))] == [
        three.classes[label] for label in sorted(set(left))]
    pairs = plots.pairs(model, data, count=4)
    drawn_labels = [label for label in set(left) for _ in range(min(4, left.count(label)))]
    assert captions(pairs)[::2] == [three.classes[label] for label in drawn_labels]
    missing = len(set(left)) < 3
    assert ("of 3 classes" in texts(pairs)) == missing
    samples = drawn(plots.samples(data, count=4))
    assert len(shown(samples)) == len(drawn_labels)
    assert row_names(samples) == [three.classes[label] for label in sorted(set(left))]


def test_a_hundred_classes(three):
    data = small(classes=100, images=100)
    model = turning(data)
    for name in set(WITH_A_MODEL) - {"pairs"}:
        assert 10 <= len(getattr(plots, name)(model, data).findobj(AxesImage)) <= 24
    pairs = drawn(plots.pairs(model, data))
    assert len(shown(pairs)) == 2 * 10 and "10 of 100 classes" in texts(pairs)
    assert {image.get_window_extent().width for image in shown(pairs)} == {96}
    axes, = drawn(plots.confusion(torch.eye(100), data.classes, TITLE)).axes
    labels = axes.get_xticklabels()
    assert not axes.texts and len(labels) < 12  # numbers of classes
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_without_test_images_others_are_shown(three):
    for data, kind in ((replace(three, val=three.test, test=None), "validation image"),
                       (replace(three, test=None), "training image")):
        model = turning(data)
        for name in ("strip", "mistakes"):
            assert kind in texts(getattr(plots, name)(model, data))
        assert plots.class_means(model, data) and plots.sampled_regions(model, data)


def test_drawing_leaves_model_and_random_state_as_they_were(three):
    model = build_model(Config(device="cpu", model="separable"), three)  # it has batch statistics
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode, names in ((True, WITH_A_MODEL), (False, WITH_A_MODEL[:1])):
        model.train(mode)
        before = torch.random.get_rng_state()
        for name in names:
            getattr(plots, name)(model, three)
        assert model.training == mode and torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_titles_name_data_set_preset_transformer_and_epoch(three):
    config = Config.preset("tutorial", device="cpu")
    assert plots.title_of(config, three, 50) == "CIFAR-10 · tutorial (affine) · epoch 50"
    assert plots.title_of(config.replace(transform="tps"), three) == "CIFAR-10 · tutorial (tps)"
    assert plots.title_of(config.replace(distortion="rts"), three).startswith("CIFAR-10, rts · ")
    assert plots.title_of(config, three, 0).endswith("epoch 0")
    alone = plots.title_of(config.replace(stn=False), three, 1)
    assert alone == "CIFAR-10 · tutorial (no transformer) · epoch 1"
    model = turning(three)
    by_hand = STNClassifier(model.transformer, model.classifier, (3, 32, 32), 3)
    assert plots.strip(by_hand, three).texts[0].get_text() == "CIFAR-10"


def test_long_names_and_titles_stay_on_the_page(three):
    data = replace(three, classes=tuple(f"{name} of the far-away\ncountryside"
                                        for name in three.classes))
    title = "CIFAR-10 · a preset with a name that somebody made rather too long (tps) · epoch 100"
    model = turning(data)
    for name in ("pairs", "sampled_regions", "class_means"):
        assert drawn(getattr(plots, name)(model, data, title)).texts[0].get_text() == title
    drawn(plots.single_image(model, data.test.images[0], data.classes, title))
    figure = drawn(plots.confusion(torch.ones(3, 3), data.classes, title))
    assert figure.texts[0].get_text() == title  # smaller, not cut


# ---- a style of their own -----------------------------------------------------------------------


USERS = {"text.usetex": True, "font.family": "no such font", "font.size": 30, "figure.dpi": 37,
         "savefig.dpi": 300, "savefig.bbox": "tight", "savefig.transparent": True,
         "lines.linewidth": 9, "xtick.labelsize": 30, "axes.unicode_minus": False,
         "image.cmap": "jet", "image.interpolation": "bilinear", "figure.autolayout": True}


def test_figures_do_not_depend_on_the_users_style(three):
    model = turning(three)
    figures = dict(
        pairs=lambda: plots.pairs(model, three),
        regions=lambda: plots.sampled_regions(model, three),
        curves=lambda: plots.curves(HISTORY, TITLE),
        confusion=lambda: plots.confusion(torch.eye(3) + 1, three.classes, TITLE),
        robustness=lambda: plots.robustness(dict(a=MEASURED), TITLE))
    plain = {name: pixels(draw()) for name, draw in figures.items()}
    with plt.style.context(["dark_background", USERS]):
        before = matplotlib.rcParams.copy()
        for name, draw in figures.items():
            np.testing.assert_array_equal(pixels(draw()), plain[name], err_msg=name)
        figure = figures["curves"]()
        figure.canvas.draw()  # as in a window
        assert matplotlib.rcParams == before
        # it is not for nothing: a figure of matplotlib's own is black here
        with plt.rc_context({"text.usetex": False, "savefig.transparent": False}):
            assert not pixels(Figure(figsize=(1, 1))).any()
    np.testing.assert_array_equal(pixels(figure), plain["curves"])


def test_class_names_are_no_formulas(three):
    names = ("$x^{2$", r"$\frac", "a_b^c $y$")
    data = replace(three, classes=names)
    model = turning(data)
    with plt.rc_context({"text.usetex": True}):
        strip = drawn(plots.strip(model, data))
        assert captions(strip)[:4] == [*names, r"✗ $\frac"]
        assert all(name in texts(drawn(plots.confusion(torch.eye(3), names, TITLE)))
                   for name in names)
        drawn(plots.single_image(model, data.test.images[0], names, "$$ {"))


# ---- light --------------------------------------------------------------------------------------


def test_light_png_is_small_and_no_difference_is_seen(three):
    lines, images = plots.curves(HISTORY, TITLE), plots.pairs(turning(three), three)
    for figure, mode in ((lines, "P"), (images, "RGB")):  # 256 colours would be seen in the latter
        content = plots.light_png(figure)
        light = Image.open(io.BytesIO(content))
        plain = io.BytesIO()
        figure.savefig(plain, format="png")
        assert light.mode == mode and len(content) < len(plain.getvalue())
        change = np.abs(np.asarray(light.convert("RGB"), int) - pixels(figure))
        assert np.quantile(change, 0.99) < 5 and change.mean() < 0.5
    assert len(plots.light_png(lines)) < 0.6 * len(plain.getvalue())


def test_pairs_of_ten_classes_are_light():
    # nothing can make noise smaller than its bytes: the rest is what three times as many pixels add
    data = small(classes=10, images=40)
    noise = 2 * 40 * 3 * 32 * 32
    assert len(plots.light_png(plots.pairs(turning(data), data))) < 1.6 * noise


def test_figures_are_saved_whole_or_not_at_all(tmp_path):
    figure = plots.curves(HISTORY, TITLE)
    plots.save(figure, tmp_path / "images" / "curves.png")
    assert (tmp_path / "images" / "curves.png").read_bytes() == plots.light_png(figure)
    (tmp_path / "a file").touch()
    with pytest.raises(OSError, match="a file"):
        plots.save(figure, tmp_path / "a file" / "curves.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "images"]


def test_a_notebook_is_given_a_light_png_with_size_and_words(three, monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display",
                        lambda *data, **more: shown.append((data, more)))
    figure = plots.curves(HISTORY, TITLE)
    figure._ipython_display_()
    ((bundle,), more), = shown
    assert base64.b64decode(bundle["image/png"]) == plots.light_png(figure) and more["raw"]
    assert bundle["text/plain"] == TITLE
    assert more["metadata"]["image/png"] == dict(width=800, height=390, alt=TITLE)


# ---- images -------------------------------------------------------------------------------------


def test_examples_are_the_first_images_of_each_class(three):
    assert [row.tolist() for row in plots.first_of_each_class(three.test, 4, 2)] == [
        [0, 1], [4, 5], [8, 9], []]
    chosen = examples(three, 2)
    assert torch.equal(chosen.images, three.test.images[[0, 1, 4, 5, 8, 9]])
    assert (chosen.labels, chosen.kind, chosen.note) == ([0, 0, 1, 1, 2, 2], "test", "")


def test_samples_are_training_images(three):
    figure = drawn(plots.samples(three, count=3))
    assert len(shown(figure)) == 9
    for k, picture in enumerate(shown(figure)):
        row, column = divmod(k, 3)
        assert_shows(picture, three.train.images[3 * column + row])  # labels 0, 1, 2, 0
    assert row_names(figure) == list(three.classes)


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_pairs_and_strip_show_image_class_input_and_prediction(three, answer):
    model, name = turning(three, answer), three.classes[answer]
    pairs = drawn(plots.pairs(model, three, count=2))
    strip = drawn(plots.strip(model, three))
    originals = [three.test.images[4 * row + column] for row in range(3) for column in range(2)]
    inputs = [torch.rot90(image, 1, (1, 2)) for image in originals]
    for picture, image in zip(shown(pairs)[::2] + shown(pairs)[1::2], originals + inputs,
                              strict=True):
        assert_shows(picture, image)
    for picture, image in zip(shown(strip), originals[::2] + inputs[::2], strict=True):
        assert_shows(picture, image)
    truth = ["cat", "cat", "dog", "dog", "emu", "emu"]
    marked = [f"{'✓' if other == name else '✗'} {name}" for other in truth]
    assert captions(pairs)[::2] == truth and captions(pairs)[1::2] == marked
    assert captions(strip) == truth[::2] + marked[::2]
    looks = {(text.get_text()[0], text.get_color(), text.get_weight())
             for text in pairs.axes[0].texts[1::2]}
    assert looks == {("✓", plots.BLUE, "normal"), ("✗", plots.RED, "bold")}


def test_pixels_become_squares_of_one_size(three):
    figure = plots.pairs(turning(three), three)
    page = pixels(figure)
    for k, image in ((0, three.test.images[0]), (8, three.test.images[4])):
        left, bottom, right, top = map(round, shown(figure)[k].get_window_extent().extents)
        part = page[len(page) - top:len(page) - bottom, left:right]
        expected = image.permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
        np.testing.assert_array_equal(part, expected)


def test_turned_and_upright_shows_each_class_once_above_what_is_made_of_it():
    data = small(classes=10, images=20)
    figure = drawn(plots.turned_and_upright(turning(data), data, count=7))
    above, below = (shown(figure)[k:k + 5] + shown(figure)[k2:k2 + 2]
                    for k, k2 in ((0, 10), (5, 12)))
    assert len(below) == 7 and row_names(figure) == ["turned", "aligned"] * 2
    for k, (turned, upright) in enumerate(zip(above, below, strict=True)):
        upper, lower = turned.get_window_extent(), upright.get_window_extent()
        assert upper.x0 == lower.x0 and upper.y0 >= lower.y1
        assert_shows(turned, data.test.images[2 * k])
        assert_shows(upright, torch.rot90(data.test.images[2 * k], 1, (1, 2)))


def test_contrast_is_not_stretched():
    data = small(channels=1)
    data.test.images.fill_(100)  # a flat image, which imshow by itself would draw black
    assert_shows(shown(plots.pairs(turning(data), data))[0], data.test.images[0])


# ---- curves -------------------------------------------------------------------------------------


def test_curves_are_the_history():
    loss, accuracy = drawn(plots.curves(HISTORY, TITLE, test_accuracy=0.4)).axes
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for line, split in zip(axes.get_lines(), ("train", "val"), strict=False):
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [row[f"{split}_{quantity}"] for row in HISTORY]
    assert accuracy.get_ylim()[0] == 0  # the legend is at the bottom, where it hides no point
    train, val, star = accuracy.get_lines()[:3]
    assert train.get_linestyle() != val.get_linestyle()
    assert list(star.get_xdata()) == [3] and list(star.get_ydata()) == [0.4]
    assert {"training", "validation", "test, at the end: 40.0%"} < set(legend_of(accuracy))


@pytest.mark.parametrize(("title", "history", "test_accuracy"), [
    (TITLE, [], None), ("glyphs · tutorial (affine)", [], 0.3), (TITLE, HISTORY[:1], 0.3),
    ("glyphs · tutorial (affine)",
     [{k: v for k, v in row.items() if "val" not in k} for row in HISTORY], None)])
def test_any_history_can_be_drawn(title, history, test_accuracy):
    loss, accuracy = drawn(plots.curves(history, title, test_accuracy)).axes
    low, high = loss.get_xlim()
    ticks = [tick for tick in loss.get_xticks() if low <= tick <= high]
    assert ticks and all(float(tick).is_integer() for tick in ticks)
    compared = any(set(line.get_ydata()) == {0.57} for line in accuracy.get_lines())
    assert compared == (title == TITLE)  # the original experiment was on undistorted CIFAR-10


# ---- theta --------------------------------------------------------------------------------------


def measured_of(theta):
    """Statistics with this theta, of which there is nothing else to say."""
    one = torch.ones(len(theta))
    return Statistics(theta, one, 0 * one, one, one, 0 * one, one)


def test_histograms_count_every_image_once():
    params = torch.stack([torch.linspace(0.5, 1, 200), *torch.zeros(3, 200)], dim=1)
    measured = measured_of(FAMILIES["similarity"].theta(params))
    figure = drawn(plots.theta_histograms(measured, TITLE))
    by_name = {axes.get_title(): axes for axes in figure.axes}
    assert list(by_name) == ["rotation", "scale", "shear", "shift x", "shift y"]
    assert all(sum(bar.get_height() for bar in axes.patches) == 200 for axes in figure.axes)
    bars = [bar for bar in by_name["rotation"].patches if bar.get_height()]
    assert bars[0].get_x() == pytest.approx(28.648, abs=bars[0].get_width())  # degrees
    assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(57.296, abs=0.01)
    identity = {name: axes.get_lines()[0].get_xdata()[0] for name, axes in by_name.items()}
    assert identity == {"rotation": 0, "scale": 1, "shear": 0, "shift x": 0, "shift y": 0}
    for name, axes in by_name.items():
        assert axes.get_xlim()[0] <= identity[name] <= axes.get_xlim()[1]
    assert "no sign of collapse" in texts(figure) and "Left out" not in texts(figure)


@pytest.mark.parametrize("spread", [1e-6, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
def test_histograms_of_any_family_even_where_all_predictions_are_nearly_one(name, spread):
    # a rotation's scale is 1 to rounding: numpy finds no 40 bins in so narrow a range of float32
    identity = FAMILIES[name].identity()
    noise = torch.randn(500, len(identity), generator=torch.Generator().manual_seed(0))
    theta = FAMILIES[name].theta(identity + spread * noise)
    figure = plots.theta_histograms(measured_of(theta), TITLE)
    assert all(sum(bar.get_height() for bar in axes.patches) == 500 for axes in figure.axes)
    for axes in figure.axes:  # rounding errors are not blown up
        assert np.ptp(axes.get_xlim()) >= 0.05


def test_the_findings_stand_below_the_histograms():
    measured, one = measured_of(FAMILIES["rotation"].theta(torch.linspace(0, 1, 50)[:, None])), None
    one = torch.ones(50)
    wrong = measured._replace(outside=one, scale=2 * one, determinant=0 * one, flipped=one,
                              variance_left=0 * one)
    figure = drawn(plots.theta_histograms(wrong, TITLE))
    written = " ".join(texts(figure).split())
    assert all(text in written for text in diagnostics.findings(wrong))
    assert len(diagnostics.findings(wrong)) == 4 and "no sign" not in written
    boxes = [text.get_window_extent() for text in figure.texts[2:]]  # in a place of their own
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert max(box.y1 for box in boxes) <= lowest + 1
    assert all(above.y0 >= below.y1 - 3 for above, below in pairwise(boxes))


def test_bands_are_the_quantiles_of_each_epoch():
    bands = [{name: [q - 2, q - 1, q + 0.0, q + 1, q + 3] for name in QUANTITIES}
             for q in (0, 5, -1)]
    bands[1]["scale"] = [0.5, 0.75, 1.25, 1.5, 2]
    figure = drawn(plots.theta_bands([0, 1, 2], bands, TITLE))
    assert titles(figure.axes) == ["rotation", "scale", "shear", "shift x", "shift y",
                                   "outside the picture"]
    for name, axes in zip(QUANTITIES, figure.axes, strict=True):
        median, identity = axes.get_lines()
        assert set(identity.get_ydata()) == {1 if name == "scale" else 0}
        assert list(median.get_xdata()) == [0, 1, 2]
        assert list(median.get_ydata()) == [band[name][2] for band in bands]
        for band, (low, high) in zip(axes.collections, ((0, 4), (1, 3)), strict=True):
            corners = {tuple(point) for point in band.get_paths()[0].vertices}
            expected = {(float(epoch), float(values[name][k]))
                        for epoch, values in enumerate(bands) for k in (low, high)}
            assert expected <= corners
        low, high = axes.get_ylim()
        assert low <= min(band[name][0] for band in bands)
        assert high >= max(band[name][4] for band in bands)


@pytest.mark.parametrize("epochs", [[], [0], [7]])
def test_bands_of_no_epoch_or_one(epochs, three):
    bands = [diagnostics.quantiles(statistics(turning(three), three.test.images))] * len(epochs)
    rotation = drawn(plots.theta_bands(epochs, bands, TITLE)).axes[0]
    line = rotation.get_lines()[0]
    assert line.get_ydata() == pytest.approx([90] * len(epochs))
    assert not epochs or line.get_marker() == "."  # one point has no line
    assert not epochs or rotation.get_xlim()[0] < epochs[0] < rotation.get_xlim()[1]


# ---- what is not finite -------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "value", "finite"), [
    ("tps", math.nan, False), ("similarity", 1e10, False), ("affine", 1e10, True)])
def test_a_broken_transformer_is_drawn_all_the_same(three, family, value, finite):
    params = FAMILIES[family].identity()
    params[:2] = value
    model = predicting(params, three, transform=family)
    for name in WITH_A_MODEL:
        figure = getattr(plots, name)(model, three)
        assert name != "sampled_regions" or drawn(figure)
    drawn(plots.single_image(model, three.test.images[0], three.classes, TITLE))
    film = plots.Film(model, three)
    film(model, HISTORY)
    assert film.picture() and len(film.player()._repr_html_()) > 1000
    drawn(plots.theta_bands(film.epochs, film.bands, TITLE))
    histograms = drawn(plots.theta_histograms(statistics(model, three.test.images), TITLE))
    assert ("Left out: 12 of 12" in texts(histograms)) != finite


def test_histograms_leave_out_what_is_not_finite_and_say_so():
    theta = FAMILIES["rotation"].theta(torch.linspace(0, 1, 50)[:, None])
    theta[3, 0, 0], theta[7, 1, 2] = math.nan, math.inf
    figure = drawn(plots.theta_histograms(measured_of(theta), TITLE))
    assert all(sum(bar.get_height() for bar in axes.patches) == 48 for axes in figure.axes)
    assert "Left out: 2 of 50 images" in texts(figure)
    drawn(plots.theta_histograms(measured_of(theta * math.nan), TITLE))


@pytest.mark.parametrize("value", [None, -math.inf])
def test_bands_and_curves_have_gaps_where_values_are_not_finite(value):
    bands = [{name: [0.0, 1.0, 2.0, 3.0, 4.0] for name in QUANTITIES} for _ in range(4)]
    bands[2]["scale"] = [0.0, 1.0, value, 3.0, value]
    figure = drawn(plots.theta_bands([0, 1, 2, 3], bands, TITLE))
    assert "Gaps: values that are not finite" in texts(figure)
    median = figure.axes[1].get_lines()[0].get_ydata()
    np.testing.assert_array_equal(median, [2, 2, math.nan, 2])
    drawn(plots.theta_bands([0], [dict.fromkeys(QUANTITIES, [value] * 5)], TITLE))
    history = [HISTORY[0], HISTORY[1] | dict(train_loss=value, val_accuracy=value), HISTORY[2]]
    drawn(plots.curves(history, TITLE, math.nan))
    drawn(plots.compare(history, history, 0.5, 0.4, TITLE))


# ---- explanations -------------------------------------------------------------------------------


def test_the_families_are_all_there_with_their_parameters(three, monkeypatch):
    # a row that somebody added
    monkeypatch.setitem(FAMILIES, "mine", replace(FAMILIES["similarity"], name="mine"))
    figure = drawn(plots.families(three.test.images[0]))
    above, below = figure.axes[:8], figure.axes[8:]
    assert titles(above) == list(FAMILIES)
    assert [axes.get_xlabel() for axes in below] == [
        f"{f.num_params} parameter{'s' if f.num_params > 1 else ''}"
        for f in FAMILIES.values()]
    for before, after in zip(above, below, strict=True):
        assert_shows(before, three.test.images[0])
        picture, = after.get_images()
        change = np.abs(picture.get_array() / 255 - before.get_images()[0].get_array() / 255)
        assert change.mean() > 0.02


# ---- sampled regions ----------------------------------------------------------------------------


SOME = dict(
    translation=[0.3, -0.2], rotation=[2.0], attention=[-0.5, 0.2, 0.4],
    similarity=[-0.4, 0.3, 0.1, 0.2], affine=[0.9, 0.4, 0.1, -0.2, 0.7, -0.3],
    projective=[0.9, 0.2, 0.1, -0.1, 0.8, 0.0, 0.4, -0.3],
    tps=(0.3 * torch.randn(32, generator=torch.Generator().manual_seed(0))).tolist(),
)


def sampled_at(family, x, y):
    """Where the output's point (x, y) is sampled, in input coordinates, worked out in numpy."""
    theta = FAMILIES[family].theta(torch.tensor([SOME[family]]))[0].double().numpy()
    if family == "tps":  # passes through its control points exactly: -1, -1/3, 1/3 and 1
        column, row = (round((c + 1) * 1.5) for c in (x, y))
        return theta[4 * row + column]
    point = theta @ [x, y, 1]
    return point[:2] / (point[2] if len(point) == 3 else 1)


def edges(axes):
    """The thick lines over an image: upper, left, lower and right edge of the region, handle."""
    return [line.get_xydata() for line in axes.get_lines() if line.get_linewidth() == 1.8]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outline_is_where_theta_puts_the_output(three, family):
    model = predicting(SOME[family], three, transform=family)
    figure = drawn(plots.sampled_regions(model, three))
    for k, axes in enumerate(figure.axes):
        assert_shows(axes, three.test.images[4 * k])
        assert tuple(axes.get_images()[0].get_extent()) == (-1, 1, 1, -1)
        upper, left, lower, right, handle = edges(axes)
        for line, (x0, y0), (x1, y1) in ((upper, (-1, -1), (1, -1)), (left, (-1, -1), (-1, 1)),
                                         (lower, (-1, 1), (1, 1)), (right, (1, -1), (1, 1))):
            np.testing.assert_allclose(line[0], sampled_at(family, x0, y0), atol=0.003)
            np.testing.assert_allclose(line[-1], sampled_at(family, x1, y1), atol=0.003)
        middle = upper[len(upper) // 2] if family == "tps" else sampled_at(family, 0, -1)
        np.testing.assert_allclose(handle[0], middle, atol=0.003)  # on the middle of the upper edge
        across = handle[0] - lower[len(lower) // 2]
        np.testing.assert_allclose(handle[1] - handle[0], across / 8, atol=0.003)
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        points = np.concatenate([upper, left, lower, right, handle])
        assert low < points.min() and points.max() < high
        assert (bottom, top) == (high, low)  # y points down
    thin = len([line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.6])
    assert thin == (6 if family == "tps" else 0)  # a bent one has its grid drawn


@pytest.mark.parametrize(("family", "params", "words"), [
    ("similarity", [math.radians(30), math.log(1.25), 0.0, 0.0], "scale 1.25, 30°"),
    ("rotation", [-math.radians(120)], "scale 1.00, -120°"),
    ("affine", [1.0, 0, 0, 0, -1, 0], "scale 1.00, 0°, mirrored"),
    ("affine", [-1.0, 0, 0, 0, -1, 0], "scale 1.00, 180°"),
    ("tps", [0.0] * 32, "scale 1.00, 0°"),
])
def test_sampling_scale_and_rotation_are_written_below(three, family, params, words):
    figure = plots.sampled_regions(predicting(params, three, transform=family), three)
    assert {axes.get_xlabel().replace("-180", "180") for axes in figure.axes} == {words}


@pytest.mark.parametrize(("shift", "sides"), [([9.0, -4.0], (1, -1)), ([-0.5, 8.0], (-1, 1))])
def test_a_region_out_of_sight_is_pointed_at(three, shift, sides):
    model = predicting(shift, three, transform="translation")
    for axes in drawn(plots.sampled_regions(model, three)).axes:
        low, high = axes.get_xlim()
        assert high - low < 7  # so the image can still be seen
        arrow, = axes.texts
        step = np.array(arrow.xy) - np.array(arrow.get_position())
        assert tuple(np.sign(step)) == sides
        assert step[0] / step[1] == pytest.approx(shift[0] / shift[1], rel=1e-4)
        assert max(low, *arrow.xy) <= high + 1e-3 and min(arrow.xy) >= low - 1e-3
    near = plots.sampled_regions(predicting([0.5, 0.5], three, transform="translation"), three)
    assert not any(axes.texts for axes in near.axes)


def test_one_image_with_its_region_and_probabilities(three):
    for image in (three.test.images[4], three.test.images[4] / 255):
        model = turning(three, answer=2)
        classes = ("cat", "dog", "a very long name of a class")
        left, middle, right = drawn(plots.single_image(model, image, classes, TITLE)).axes
        assert_shows(left, image)
        assert_shows(middle, torch.rot90(image, 1, (1, 2)))
        # it is read from the right
        np.testing.assert_allclose(edges(left)[0][[0, -1]], [[1, -1], [1, 1]], atol=0.003)
        names = [label.get_text() for label in right.get_yticklabels()]
        assert names[0].startswith("a very long") and set(names[1:]) == {"cat", "dog"}
        assert right.get_ylim()[0] > right.get_ylim()[1]  # the most probable is on top
        probabilities = np.exp([1, 0, 0]) / np.exp([1, 0, 0]).sum()
        widths = [bar.get_width() for bar in right.patches]
        assert widths == pytest.approx(probabilities, abs=1e-5)
        assert [text.get_text() for text in right.texts] == [f"{width:.0%}" for width in widths]


# ---- means --------------------------------------------------------------------------------------


def test_mean_images_are_the_means_of_each_class(three):
    three.test.labels[:2] = 2  # not all classes have as many
    before, after = mean_images(turning(three), three)
    images, labels = three.test.images.numpy() / 255, three.test.labels.numpy()
    for k in range(3):
        mean = images[labels == k].mean(axis=0)
        np.testing.assert_allclose(before[k].numpy(), mean, atol=1e-5)
        np.testing.assert_allclose(after[k].numpy(), np.rot90(mean, axes=(1, 2)), atol=1e-4)


def test_class_means_show_the_means_and_their_contrast(three):
    model = predicting([math.log(2), 0, 0], three, transform="attention", output_size=24)
    three.test.images.copy_(three.test.images // 4 + 90)  # pale, as means of many images are
    figure = drawn(plots.class_means(model, three))
    stretch = int(re.search(r"stretched (\d+) times", texts(figure))[1])
    assert stretch > 2
    contrasts = []
    for row, means in enumerate(mean_images(model, three)):
        for picture, mean in zip(shown(figure)[3 * row:3 * row + 3], means, strict=True):
            contrasts.append(np.mean([255 * channel.double().numpy().std() for channel in mean]))
            middle = mean.mean(dim=(1, 2), keepdim=True)
            assert_shows(picture, middle + stretch * (mean - middle))  # nothing is cut off
    *numbers, before, after = row_names(figure)
    assert (before, after) == ("before", "after")
    assert [float(number) for number in numbers] == pytest.approx(contrasts, abs=0.051)
    before, after = np.mean(contrasts[:3]), np.mean(contrasts[3:])
    assert f"mean {before:.1f} before and {after:.1f} after ({after / before:.2f} times)" in texts(
        figure)
    three.test.images.fill_(90)
    flat = drawn(plots.class_means(turning(three), three))
    assert set(row_names(flat)) == {"before", "after", "0.0"}


# ---- predictions --------------------------------------------------------------------------------


class Brightness(torch.nn.Module):
    """Predicts class 1, with a probability that grows with the brightness of the image."""

    def forward(self, images):
        brightness, other = 4 + images.mean(dim=(1, 2, 3)), torch.zeros(len(images))
        return torch.stack([other, brightness, other], dim=1)


def probability_of(grey):
    """What Brightness gives class 1 for a flat image of `grey`."""
    channels = ((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))
    odds = math.exp(4 + np.mean([(grey / 255 - mean) / std for mean, std in channels]))
    return odds / (odds + 2)


def by_brightness(three, greys):
    """A model that goes by brightness, and data whose test images are flat, of these greys."""
    images = torch.tensor(greys, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)
    model = turning(three)
    model.classifier = Brightness()
    return model, replace(three, test=Split(images, torch.arange(len(greys)) % 3))


def test_mistakes_come_by_their_probability(three):
    greys = [10, 250, 90, 200, 40, 255, 130, 0, 30]
    model, data = by_brightness(three, greys)
    figure = drawn(plots.mistakes(model, data, count=4))
    wrong = ((probability_of(grey), k) for k, grey in enumerate(greys) if k % 3 != 1)
    expected = sorted(wrong, reverse=True)[:4]
    assert captions(figure) == [text for p, k in expected
                                for text in (three.classes[k % 3], f"✗ dog {p:.0%}")]
    for picture, k in zip(shown(figure), [k for _, k in expected for _ in range(2)], strict=True):
        assert_shows(picture, data.test.images[k])
    assert "6 of 9 test images are predicted wrongly" in texts(figure)


def test_no_mistakes_and_few(three):
    model, data = by_brightness(three, [10, 20, 30, 40])
    right = replace(data, test=Split(data.test.images, torch.ones(4, dtype=torch.int64)))
    none = drawn(plots.mistakes(model, right))
    assert "0 of 4 test images" in texts(none) and not shown(none)
    assert len(shown(drawn(plots.mistakes(model, data)))) == 2 * 3


def luminance(colour):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return np.dot(channels, [0.2126, 0.7152, 0.0722])


def test_confusion_counts_true_classes_in_rows(three):
    counts = torch.tensor([[6, 2, 0], [1, 9, 0], [0, 0, 0]])
    axes, = drawn(plots.confusion(counts.tolist(), three.classes, TITLE)).axes
    cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75", (1, 0): "25", (0, 1): "10", (1, 1): "90"}
    for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
        assert [label.get_text() for label in labels] == list(three.classes)
    assert (axes.get_xlabel(), axes.get_ylabel().split(",")[0]) == ("prediction", "true class")
    framed = {patch.get_xy() for patch in axes.patches}
    assert framed == {(k - 0.5, k - 0.5) for k in range(3)}


def test_confusion_names_the_most_frequent_mistake(three):
    counts = torch.tensor([[90, 5, 5], [1, 3, 2], [0, 30, 70]])
    # 2 of 6, though 30 emus of 100 are more in number
    assert "dog, predicted as emu, 33.3%" in texts(plots.confusion(counts, three.classes, TITLE))
    assert "No mistake" in texts(plots.confusion(torch.eye(3), three.classes, TITLE))


def test_confusion_is_legible_on_any_colour():
    counts = torch.zeros(NUMBERED, NUMBERED, dtype=torch.int64)
    counts[:, 0] = torch.linspace(0, 100, NUMBERED).long()
    counts[:, 1] = 100 - counts[:, 0]
    axes, = plots.confusion(counts, tuple(map(str, range(NUMBERED))), TITLE).axes
    image, = axes.get_images()
    assert len(axes.texts) == 2 * NUMBERED - 2
    for text in axes.texts:
        column, row = text.get_position()
        ground = image.cmap(image.norm(image.get_array()[row, column]))
        light, dark = sorted(map(luminance, (text.get_color(), ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (row, column)  # WCAG 2.2's minimum for text


# ---- arms ---------------------------------------------------------------------------------------


def test_robustness_draws_each_arm_and_its_accuracy_undistorted():
    worse = {name: dict(values=part["values"], accuracy=[a / 2 for a in part["accuracy"]])
             for name, part in MEASURED.items()}
    figure = drawn(plots.robustness({"with": MEASURED, "without": worse}, TITLE, chance=0.25))
    best = max(max(part["accuracy"]) for part in MEASURED.values())
    for axes, (quantity, reference) in zip(
            figure.axes, dict(angle=0.6, shift_x=0.61, scale=0.62).items(), strict=True):
        first, first_level, second, second_level, chance = axes.get_lines()
        assert list(first.get_xdata()) == MEASURED[quantity]["values"]
        assert list(first.get_ydata()) == MEASURED[quantity]["accuracy"]
        assert list(second.get_ydata()) == worse[quantity]["accuracy"]
        assert set(first_level.get_ydata()) == {reference}
        assert set(second_level.get_ydata()) == {reference / 2}
        assert set(chance.get_ydata()) == {0.25}
        assert axes.get_ylim() == (0, pytest.approx(0.1 + best))
    assert figure.axes[2].get_xscale() == "log"
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["with", "without"]
    # where the undistorted images were not measured, there is no line for them
    other = dict(a=dict(angle=dict(values=[10, 20], accuracy=[0.3, 0.2])))
    assert len(plots.robustness(other, TITLE).axes[0].get_lines()) == 2


def test_arms_differ_in_more_than_colour():
    arms = {f"arm {k}": MEASURED for k in range(8)}
    lines = drawn(plots.robustness(arms, TITLE)).axes[0].get_lines()
    looks = [(line.get_linestyle(), line.get_marker())
             for line in lines if line.get_label() in arms]
    assert len(looks) == len(set(looks)) == len(plots.STYLES) == 8


def test_rotation_errors_are_shares_of_the_images():
    upright, upside_down = [30, *[0] * 34, 10], [0, *[0] * 34, 5]
    figure = drawn(plots.rotation_errors(dict(a=upright, b=upside_down), TITLE))
    axes, = figure.axes
    first, second = (patch.get_data() for patch in axes.patches)
    assert first.values.tolist() == pytest.approx([0.75, *[0] * 34, 0.25])
    assert second.values[-1] == 1 and first.edges.tolist() == list(range(0, 181, 5))
    chance, = axes.get_lines()
    assert set(chance.get_ydata()) == {5 / 180}  # a turn at random
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_comparison_shows_both_runs_and_what_their_test_can_tell():
    others = [dict(epoch=e, train_loss=1, train_accuracy=0.2 * e) for e in (1, 2)]
    figure = drawn(plots.compare(HISTORY, others, 0.601, 0.583, TITLE, images=1000))
    during, test = figure.axes
    with_line, without_line = during.get_lines()
    # training accuracy, as only one has a validation accuracy
    assert list(with_line.get_ydata()) == [row["train_accuracy"] for row in HISTORY]
    assert list(without_line.get_ydata()) == [0.2, 0.4]
    assert with_line.get_linestyle() != without_line.get_linestyle()
    assert during.get_ylabel() == "training accuracy"
    ends = sorted(x for bar in test.collections for segment in bar.get_segments()
                  for x, _ in segment)
    expected = []
    for name, right, label in zip(("with transformer", "without"), (601, 583),
                                  test.get_yticklabels(), strict=True):
        low, high = binomtest(right, 1000).proportion_ci(method="wilson")
        assert label.get_text() == f"{name}\n{right / 1000:.1%}\n({low:.1%} to {high:.1%})"
        expected += [low, high]
    assert ends == pytest.approx(sorted(expected), abs=1e-6)
    assert "test images only" in texts(figure) and "seed" in texts(figure)
    assert test.get_xlabel() == "accuracy on 1,000 test images"
    both = plots.compare(HISTORY, HISTORY[:1], 0.5, 0.4, TITLE).axes[0]
    assert both.get_ylabel() == "validation accuracy"
    assert list(both.get_lines()[0].get_ydata()) == [row["val_accuracy"] for row in HISTORY]


@pytest.mark.parametrize(("histories", "accuracies"), [(([], []), (0.0, 1.0)),
                                                       ((HISTORY[:1], []), (0.1, 0.1))])
def test_any_two_runs_can_be_compared(histories, accuracies):
    drawn(plots.compare(*histories, *accuracies, TITLE, images=10))
