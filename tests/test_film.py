"""The film: what is kept is what the model did; the GIF, the player and the live view show it."""

import base64
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import IPython.display
import numpy as np
import pytest
import torch
from PIL import Image

from stn_cifar import diagnostics, plots
from stn_cifar.config import Config
from stn_cifar.data import Data, Split
from stn_cifar.plots import Film, Live, film
from stn_cifar.plots.film import HEADER, MARGIN, MEASURED, STEP
from stn_cifar.plots.player import TILE, _sprite
from stn_cifar.spatial_transformer import initialize_output
from stn_cifar.stn import build_model
from stn_cifar.training.loop import fit


def history(epochs, **more):
    return [dict(epoch=k, train_loss=2 / k, train_accuracy=0.1 * k) | more
            for k in range(1, epochs + 1)]


def turning(data, **fields):
    return build_model(Config(device="cpu", transform="rotation", **fields), data)


def turn(model, degrees):
    initialize_output(model.transformer.localization, torch.tensor([np.deg2rad(degrees)]))


@pytest.fixture(scope="module")
def filmed(glyph_data):
    """(film, model) of epochs 0 to 3: everything is turned by 0, 90, 180, 270 degrees."""
    model = turning(glyph_data, epochs=3)
    film = Film(model, glyph_data)
    for epoch in (1, 2, 3):
        turn(model, 90 * epoch)
        film(model, history(epoch))
    return film, model


def copy_of(film, **changes):
    copy = Film.__new__(Film)
    copy.__dict__ = dict(film.__dict__, frames=list(film.frames)) | changes
    return copy


def noise(images, channels=3, size=32):
    return torch.randint(256, (images, channels, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def film_of(count=1, images=40, size=32, channels=3, classes=3, **more):
    """A film of one epoch over random images."""
    split = Split(noise(images, channels, size), torch.arange(images) % classes)
    names = tuple("class " * 3 + str(k) for k in range(classes))
    data = Data(split, None, split, names, "noise")
    model = turning(data)
    film = Film(model, data, count)
    film(model, history(1, **more))
    return film


def tile(picture, number, row):
    """What a film's picture shows of image `number`: row 0 as it is, row 1 the input made of it."""
    left, top = MARGIN + number * STEP, HEADER + 17 + row * STEP
    return pixels(picture.crop((left, top, left + TILE, top + TILE)))


def pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def doubled(images):
    return images.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


# ---- what is kept -------------------------------------------------------------------------------


def test_frames_are_of_one_image_a_class_as_the_model_turned_them(filmed, glyph_data):
    film, _ = filmed
    assert film.epochs == [0, 1, 2, 3] == [frame.epoch for frame in film.frames]
    assert film.labels == list(range(10)) and len(film.images) == 10
    first = [(glyph_data.val.labels == k).nonzero()[0, 0].item() for k in range(10)]
    assert torch.equal(film.images, glyph_data.val.images[first])
    for quarter, frame in enumerate(film.frames):
        assert frame.warped.dtype == torch.uint8
        expected = torch.rot90(film.images, quarter, dims=(2, 3)).int()
        assert (frame.warped.int() - expected).abs().max() <= 1
    the_other_way = torch.rot90(film.images, 3, dims=(2, 3)).int()
    assert (film.frames[1].warped.int() - the_other_way).abs().max() > 50


def test_validation_images_are_filmed_else_test_images_and_it_says_so(filmed, glyph_data):
    film, _ = filmed
    assert film.describe(film.frames[2])[1].endswith("of these 10 validation images predicted "
                                                     "correctly")
    assert torch.equal(film.measured, glyph_data.val.images)
    for data, kind, split in (
            (replace(glyph_data, val=None), "test images (shown, not used)", glyph_data.test),
            (replace(glyph_data, val=None, test=None), "training images", glyph_data.train)):
        other = Film(turning(data), data)
        assert torch.equal(other.measured, split.images[:MEASURED])
        assert f"of these 10 {kind} predicted correctly" in other.describe(other.frames[0])[1]
    larger = film_of(images=MEASURED + 50)
    assert torch.equal(larger.measured, noise(MEASURED + 50)[:MEASURED])


def test_predictions_bands_and_findings_are_the_models_in_evaluation_mode(filmed, glyph_data):
    film, model = filmed
    model.eval()
    assert film.frames[3].predicted == model(film.images).argmax(1).tolist()
    model.train()
    measured = diagnostics.statistics(model, glyph_data.val.images[:MEASURED])
    assert film.bands[3] == diagnostics.quantiles(measured) != film.bands[2]
    assert abs(film.bands[1]["rotation"][2]) == pytest.approx(90, abs=1e-3)
    assert len(film.bands) == 4 and plots.theta_bands(film.epochs, film.bands, film.title).axes
    assert film.frames[3].findings == diagnostics.findings(measured) != []
    assert film.frames[0].findings == []  # untrained: nothing to judge


def test_findings_warn_of_zooming_out_and_are_silent_without_a_transformer(glyph_data):
    model = build_model(Config(device="cpu", transform="attention"), glyph_data)
    film = Film(model, glyph_data)
    initialize_output(model.transformer.localization, torch.tensor([2.0, 0, 0]))
    film(model, history(1))
    assert film.frames[1].findings[0].startswith("zoomed out")
    control = build_model(Config(device="cpu", stn=False), glyph_data)
    film = Film(control, glyph_data)
    film(control, history(1))
    assert film.frames[1].findings == [] and torch.equal(film.frames[1].warped, film.images)


def test_recording_changes_nothing_about_the_training(glyph_data):
    config = Config(device="cpu", epochs=2, precision="fp32", batch_size=64)
    glyph_data = replace(glyph_data, train=glyph_data.train[:70])
    with_film, without = build_model(config, glyph_data), build_model(config, glyph_data)
    random_state = torch.get_rng_state()
    film = Film(with_film, glyph_data)
    assert torch.equal(torch.get_rng_state(), random_state) and with_film.training
    fit(with_film, glyph_data, config, on_epoch_end=film)
    fit(without, glyph_data, config)
    assert film.epochs == [0, 1, 2]
    for ours, theirs in zip(with_film.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_epoch_is_kept_once_and_a_resumed_run_has_a_gap(glyph_data):
    model = turning(glyph_data)
    film = Film(model, glyph_data)
    film(model, [])
    film(model, history(5))
    turn(model, 30)
    film(model, history(5))  # as after fit: the same epoch again
    assert film.epochs == [0, 5] and len(film.frames) == len(film.bands) == 2
    assert film.frames[1].findings[0].startswith("note: it does nothing")


def test_words_tell_epoch_accuracy_and_how_many_are_correct(filmed):
    film, _ = filmed
    right = sum(p == k for k, p in enumerate(film.frames[2].predicted))
    assert film.describe(film.frames[2]) == (
        "glyphs · tutorial (rotation) · epoch 2",
        f"training accuracy 20.0%, {right} of these 10 validation images predicted correctly")
    assert film.describe(film.frames[0])[0].endswith("untrained")
    validated = film_of(val_accuracy=0.375)
    words = validated.describe(validated.frames[-1])[1]
    assert words.startswith("validation accuracy 37.5%")


# ---- pictures -----------------------------------------------------------------------------------


def test_picture_shows_the_pixels_themselves_and_marks_right_and_wrong(filmed):
    film = copy_of(filmed[0])
    film.frames[1] = film.frames[1]._replace(predicted=[0] * 10)  # the first is right
    picture = film.picture(1)
    assert picture.size == (800, 246) and picture.mode == "RGB"
    for k in (0, 4, 9):
        assert torch.equal(tile(picture, k, 0), doubled(film.images[k]))
        assert torch.equal(tile(picture, k, 1), doubled(film.frames[1].warped[k]))
    left, top = MARGIN, HEADER + 10 + 2 * STEP
    first, second = ({colour for _, colour in picture.crop(
        (left + k * STEP, top, left + (k + 1) * STEP, top + 14)).getcolors(4096)} for k in (0, 1))
    blue, red = (tuple(bytes.fromhex(colour[1:])) for colour in (plots.BLUE, plots.RED))
    assert blue in first and red not in first and red in second and blue not in second


def test_pictures_of_other_sizes_grey_ones_and_many_rows():
    assert film_of(count=5, images=60).picture().size == (800, 430)  # two rows of pairs
    assert film_of(classes=30).picture().size == (800, 246)  # of ten classes
    assert film_of(images=2).labels == [0, 1]
    grey = film_of(channels=1, size=64)
    assert torch.equal(tile(grey.picture(), 1, 0), grey.images[1].expand(3, -1, -1))
    large = film_of(size=128)
    means = large.images[0].double().unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(3, 4))
    assert (tile(large.picture(), 0, 0) - means).abs().max() <= 1


def test_bar_grows_with_the_epochs(filmed):
    blue = list(bytes.fromhex(plots.BLUE[1:]))
    lengths = [(np.array(filmed[0].picture(k))[244] == blue).all(axis=-1).sum() for k in range(4)]
    assert lengths[0] <= 1 and lengths[1] == pytest.approx(267, abs=2) and lengths[3] == 800


# ---- the GIF ------------------------------------------------------------------------------------


def test_gif_shows_the_frames_in_true_colours_and_stays_on_the_last(filmed, tmp_path):
    film, _ = filmed
    film.gif(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (800, 246) and gif.info["loop"] == 0
        durations, tops = [], []
        for k in range(4):
            gif.seek(k)
            durations.append(gif.info["duration"])
            shown, meant = (np.asarray(picture.convert("RGB"), dtype=float)
                            for picture in (gif, film.picture(k)))
            white = meant[:50].min(axis=-1) == 255
            assert (shown[:50][white] == 255).all(), "white is white"
            # decibels; 30 is seen
            assert 10 * np.log10(255**2 / ((shown - meant) ** 2).mean()) > 33
            tops.append(shown[HEADER + 17:HEADER + 17 + TILE])
    assert durations == [1000, 200, 200, 3000]
    assert all((top == tops[0]).all() for top in tops), "what stands still does not flicker"


def long_film(film, model, epochs):
    """A film of so many epochs more, in which the images turn by a degree each."""
    film = copy_of(film, frames=film.frames[:1])
    for epoch in range(1, epochs + 1):
        turn(model, epoch)
        warped = model.transform(film.images)[0].detach().mul(255).round().to(torch.uint8)
        film.frames.append(film.frames[0]._replace(epoch=epoch, warped=warped))
    return film


def test_gif_and_player_of_fifty_epochs_are_small(filmed, glyph_data, tmp_path):
    film = long_film(filmed[0], turning(glyph_data), 50)
    film.gif(tmp_path / "film.gif")
    assert (tmp_path / "film.gif").stat().st_size < 3e6
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 51
    assert len(film.player()._repr_html_()) < 0.8e6


def test_a_film_of_one_frame_is_a_picture(filmed, tmp_path):
    film = copy_of(filmed[0], frames=filmed[0].frames[:1])
    film.gif(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 1
    assert len(content_of(Page(film.player()._repr_html_()))["frames"]) == 1


# ---- the player ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements of a page: [(tag, attributes, text within)]."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2] += data

    def of(self, tag):
        return [element for element in self.elements if element[0] == tag]


def content_of(page):
    return json.loads(page.of("script")[0][2])


def decoded(address):
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", address).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.format.lower() == kind
    return pixels(picture.convert("RGB"))


def test_player_carries_every_frame_once_and_nothing_from_elsewhere(filmed):
    film, _ = filmed
    text = film.player()._repr_html_()
    assert not re.search(r"https?:|src=[\"'](?!data:)|@import|widget|\{\{", text)
    page = Page(text)
    content = content_of(page)
    assert [frame["epoch"] for frame in content["frames"]] == [0, 1, 2, 3]
    assert content["labels"] == list(film.classes) and content["kind"] == "validation"
    for frame, kept in zip(content["frames"], film.frames, strict=True):
        expected = [[film.classes[p], p == k] for k, p in enumerate(kept.predicted)]
        assert frame["predictions"] == expected and tuple(frame["words"]) == film.describe(kept)
        assert frame["findings"] == "\n".join(kept.findings)
    sheet, images = decoded(content["warped"]).int(), decoded(content["images"]).int()
    assert sheet.shape == (3, 320, 128) and images.shape == (3, 320, 32)
    for k in range(4):
        for row in (0, 9):
            part = sheet[:, 32 * row:32 * row + 32, 32 * k:32 * k + 32]
            errors = [(part - other.warped[row].int()).abs().float().mean()
                      for other in film.frames]
            assert errors[k] == min(errors) < 4 < sorted(errors)[1]
    assert (images[:, :32] - film.images[0].int()).abs().float().mean() < 4


def test_player_leaves_a_described_picture_to_those_who_run_no_scripts(filmed):
    film, _ = filmed
    bundle = film.player()._repr_mimebundle_()
    picture, = Page(bundle["text/html"]).of("img")
    change = decoded(picture[1]["src"]).int() - pixels(film.picture(3)).int()
    assert np.quantile(change.abs().numpy(), 0.99) < 5
    assert picture[1]["alt"] == bundle["text/plain"] == ": ".join(film.describe(film.frames[3]))
    assert picture[1]["src"] == "data:image/png;base64," + bundle["image/png"]


def test_names_cannot_break_out_of_the_player(filmed):
    script = '</script><img src="x" onerror="alert(1)">{{alt}}'
    film = copy_of(filmed[0], title='"><b>{{content}}{title}</b>&amp;',
                   classes=(script, *filmed[0].classes[1:]))
    page = Page(film.player()._repr_html_())
    assert [element[0] for element in page.elements] == ["div", "img", "script", "style", "script"]
    content = content_of(page)
    assert content["labels"][0] == script
    assert content["frames"][0]["words"][0].startswith(film.title)
    assert page.of("img")[0][1]["alt"].startswith(film.title)


# ---- live ---------------------------------------------------------------------------------------


class Place:
    """Where a notebook shows something: what, and how often it was drawn."""

    count = 0

    def update(self, bundle, *, raw, metadata=None):
        assert raw
        self.bundle, self.metadata, self.count = bundle, metadata, self.count + 1


@pytest.fixture
def places(monkeypatch):
    """The places that are shown in, in order."""
    places = []

    def display(bundle, *, raw, display_id, metadata=None):
        assert raw and display_id
        places.append(Place())
        places[-1].update(bundle, raw=raw, metadata=metadata)
        return places[-1]
    monkeypatch.setattr(IPython.display, "display", display)
    return places


def test_live_draws_in_one_place_what_the_film_has_and_says_what_is_wrong(places, glyph_data,
                                                                          monkeypatch):
    monkeypatch.setattr(film, "PAUSE", -1)
    model = turning(glyph_data, epochs=3)
    live = Live(Film(model, glyph_data))
    turn(model, 45)
    for epoch in (1, 2, 3):
        live(model, history(epoch))
    pictures, words = places  # and no more, however many epochs
    assert pictures.count == words.count == 4
    shown = decoded("data:image/png;base64," + pictures.bundle["image/png"])
    strip = pixels(live.film.picture())
    assert shown.shape[1:] == (246 + 390, 800)
    assert (shown[:, :246].int() - strip.int()).abs().float().mean() < 1
    alt = pictures.bundle["text/plain"]
    assert pictures.metadata["image/png"] == dict(width=800, height=636, alt=alt)
    assert alt.startswith("glyphs · tutorial (rotation) · epoch 3: training accuracy 30.0%")
    assert words.bundle["text/plain"] == "\n".join(live.film.frames[-1].findings) != ""
    before = shown[:, 246:]
    live.draw(history(3), test_accuracy=0.9)
    after = decoded("data:image/png;base64," + pictures.bundle["image/png"])[:, 246:]
    assert not torch.equal(before, after), "the star of the test accuracy"


def test_live_draws_fast_epochs_now_and_then_and_the_last_always(glyph_data, monkeypatch):
    model, clock, drawn = turning(glyph_data, epochs=10), [100.0], []

    def draw(live, history):
        live.drawn = clock[0]
        drawn.append(len(history))
    monkeypatch.setattr(Live, "draw", draw)
    monkeypatch.setattr(film.time, "monotonic", lambda: clock[0])
    live = Live(Film(model, glyph_data))
    for epoch in range(1, 11):
        clock[0] += 0.7
        live(model, history(epoch))
    assert drawn == [0, 3, 6, 9, 10] and live.film.epochs == list(range(11))
    live(model, history(10))  # after fit
    assert drawn[-2:] == [10, 10]


def test_live_shows_the_epochs_that_were_complete_when_training_is_stopped(places, glyph_data):
    config = Config(device="cpu", epochs=5, precision="fp32")
    glyph_data = replace(glyph_data, train=glyph_data.train[:70])
    model = build_model(config, glyph_data)
    live = Live(Film(model, glyph_data))

    def stop_after_the_second(model, history):
        live(model, history)
        if len(history) == 2:
            raise KeyboardInterrupt
    rows = fit(model, glyph_data, config, on_epoch_end=stop_after_the_second)
    live(model, rows)
    assert len(rows) == 2 and "epoch 2" in places[0].bundle["text/plain"]


def test_figures_need_no_notebook_to_be_imported():
    blocked = "import sys; sys.modules.update(IPython=None, google=None, nbformat=None)"
    code = f"{blocked}; import stn_cifar.plots; assert 'matplotlib.pyplot' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_player_of_noise_which_no_jpeg_makes_small():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    assert _sprite([noise] * 10).startswith("data:image/jpeg;base64,")
