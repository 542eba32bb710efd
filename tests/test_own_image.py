"""A picture of one's own: every kind is read as it looks; what is none is told in words."""

import io
import os
import socket
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from stn_cifar.notebook import own_image
from stn_cifar.notebook.own_image import choose, load

GROUND = (125, 123, 114)  # CIFAR-10's mean colour, as published, times 255
ORANGE = (240, 120, 30)


def saved(picture, kind="PNG", **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def colour(tensor):
    """The one colour of a picture."""
    assert tensor.dtype == torch.uint8 and tensor.flatten(1).unique(dim=1).shape[1] == 1
    return tuple(tensor[:, 0, 0].tolist())


def orange(size=(50, 40)):
    return Image.new("RGB", size, ORANGE)


def noise(size=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side, bits, colour_type):
    """The beginning of a PNG of that size, whose pixels are missing."""
    header = struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
            + chunk(b"IEND", b""))


# ---- kinds


@pytest.mark.parametrize("mode, value, expected", [
    ("RGB", ORANGE, ORANGE),
    ("RGBA", (*ORANGE, 255), ORANGE),
    ("RGBA", (*ORANGE, 0), GROUND),
    ("RGBA", (255, 255, 255, 128), (190, 189, 185)),  # half way to white
    ("L", 77, (77, 77, 77)),
    ("LA", (200, 0), GROUND),
    ("LA", (200, 255), (200, 200, 200)),
    ("1", 1, (255, 255, 255)),
])
@pytest.mark.parametrize("size", [(50, 40), (400, 300)])  # as it is, and reduced first
def test_a_plain_picture_keeps_its_colour(mode, value, expected, size):
    picture = load(saved(Image.new(mode, size, value)))
    assert picture.shape == (3, 32, 32)
    assert np.abs(np.subtract(colour(picture), expected)).max() <= 1


@pytest.mark.parametrize("kind, options", [
    ("JPEG", dict(quality=95)), ("WEBP", dict(lossless=True)), ("BMP", {}), ("TIFF", {}),
    ("GIF", {}), ("PPM", {}), ("ICO", {}), ("JPEG2000", {})])
def test_formats(kind, options):
    content = saved(orange(), kind, **options)
    assert np.abs(np.subtract(colour(load(content)), ORANGE)).max() < 4


def test_cmyk_as_printers_have_it():
    red = load(saved(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.subtract(colour(red), (255, 0, 0))).max() < 5


@pytest.mark.parametrize("side", [40, 400])
def test_palette_with_a_transparent_colour(side):
    picture = Image.new("P", (side, side), 1)
    picture.putpalette([0, 0, 0, *ORANGE])
    assert colour(load(saved(picture))) == ORANGE
    assert colour(load(saved(picture, transparency=1))) == GROUND
    assert colour(load(saved(orange((side, side)), transparency=ORANGE))) == GROUND


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)),
                                                 (8, (1, 0)), (2, (0, 1))])
@pytest.mark.parametrize("side, kind", [(64, "PNG"), (640, "JPEG")])
def test_turned_upright_as_exif_says(orientation, corner, side, kind):
    """The upper left quarter, as stored, is white; `corner` (row, column) is where it belongs."""
    picture = Image.new("L", (side, side))
    picture.paste(255, (0, 0, side // 2, side // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters = load(saved(picture, kind, exif=exif))[0].float().view(2, 16, 2, 16)
    assert divmod(quarters.mean(dim=(1, 3)).argmax().item(), 2) == corner


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    lossless = dict(lossless=True) if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert np.abs(np.subtract(colour(load(content)), (255, 0, 0))).max() < 4


# ---- size and shape


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (900, 300)])
def test_the_middle_square_is_cut_out(size):
    picture, side = Image.new("RGB", size, "blue"), min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    picture.paste((255, 0, 0), (left, top, left + side, top + side))
    red = torch.tensor([255, 0, 0]).view(3, 1, 1)
    # the filter smears a little; one pixel aside: 255
    assert (load(saved(picture)).int() - red).abs().max() <= 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_reduced_with_anti_aliasing(kind):
    checks = ((np.indices((640, 640)).sum(0) % 2) * 255).astype(np.uint8)
    picture = load(saved(Image.fromarray(checks), kind))
    # every 20th pixel alone would be black or white
    assert (picture.float() - 127.5).abs().max() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_what_reducing_all_of_it_at_once_gives(kind):
    y, x = np.mgrid[:900, :1200] / 1200
    waves = np.stack([np.sin(9 * x), np.sin(7 * y), np.sin(8 * (x + y))], axis=2)
    picture = Image.fromarray((127 * waves + 128).astype(np.uint8))
    whole = picture.crop((150, 0, 1050, 900)).resize((32, 32), Image.Resampling.LANCZOS)
    whole = torch.from_numpy(np.array(whole)).permute(2, 0, 1)
    assert (load(saved(picture, kind)).int() - whole).abs().max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (31, 33), (2000, 1500)])
@pytest.mark.parametrize("to, channels", [(32, 3), (48, 1)])
def test_any_size_to_any_size(size, to, channels):
    picture = load(saved(Image.new("RGB", size, (90, 90, 90))), to, channels)
    assert picture.shape == (channels, to, to) and picture.is_contiguous()
    assert colour(picture) == (90,) * channels


def test_channels_are_one_or_three():
    with pytest.raises(ValueError, match="channels: 4; must be 1 or 3"):
        load(saved(orange()), 32, 4)


# ---- where it may come from


def test_a_path_as_people_give_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my picture ü.png"
    path.write_bytes(saved(orange()))
    for name in (path, str(path), path.name, "~/my picture ü.png", f" '{path}' ", f'"{path}"'):
        assert colour(load(name)) == ORANGE


# ---- what is no picture


def test_what_is_not_there_or_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: no such file in .*whole path"):
        load(tmp_path / "nothing.png")
    for address in ("https://x.org/a.png", "'http://x.org/a.png'", "s3://x/a.png",
                    "data:image/png;base64,iVBORw0KGgo="):
        with pytest.raises(ValueError, match="is an address; save the picture, and give the file"):
            load(address)
    with pytest.raises(ValueError, match="must name a file"):
        load("  ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_only_files_are_opened(tmp_path, monkeypatch):
    """A pipe would wait for ever, a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # as the path of a socket must be short
    listener.bind("socket")
    os.symlink("pipe", "holiday.png")
    for path in (tmp_path, "pipe", "socket", "holiday.png", "/dev/zero", "/dev/urandom",
                 "/dev/null"):
        with pytest.raises(ValueError, match="is a folder, a pipe or a device; must be a picture"):
            load(path)
    listener.close()


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.png"
    path.touch()
    os.truncate(path, 60_000_000_000)  # takes no space
    with pytest.raises(ValueError, match=r"has 60,000,000,000 bytes; must have 200,000,000"):
        load(path)


@pytest.mark.parametrize("content, words", [
    (b"", "no picture, or of a kind"),
    (b"just some text", "no picture, or of a kind that cannot be read here"),
    (b'<?xml version="1.0"?><svg width="1">', "no picture, or of a kind"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "no picture, or of a kind that .*such as HEIC"),
])
def test_other_files_are_named_with_the_remedy(tmp_path, content, words):
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: {words}.*save it as PNG or JPEG"):
        load(path)
    with pytest.raises(ValueError, match=f"the picture: {words}"):
        load(content)


def test_no_kind_that_another_program_must_read_is_touched(tmp_path, monkeypatch):
    """An EPS called holiday.png must not reach Ghostscript, which runs what is in it."""
    content = saved(Image.new("RGB", (40, 40)), "EPS")
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    reached = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: reached.append(a))
    with pytest.raises(ValueError, match="no picture, or of a kind that cannot be read here"):
        load(path)
    assert not reached
    with Image.open(path) as picture, pytest.raises((AttributeError, AssertionError)):
        picture.load()  # Pillow alone would
    assert reached


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_file_cut_off_anywhere_is_read_or_refused_in_words(kind):
    content = saved(noise(), kind)
    refused = 0
    for length in range(0, len(content), max(1, len(content) // 60)):
        try:
            assert load(content[:length]).shape == (3, 32, 32)
        except ValueError as error:
            refused += 1
            assert "the picture: " in str(error) and "save it as PNG or JPEG" in str(error)
    assert refused > 25


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_damaged_file_is_read_or_refused_in_words(kind):
    random = np.random.default_rng(1)
    content = saved(noise(), kind)
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, min(len(content), 400), 4):
            damaged[place] = random.integers(256)
        try:
            assert load(bytes(damaged)).shape == (3, 32, 32)
        except ValueError as error:
            assert "the picture: " in str(error)


@pytest.mark.parametrize("side", [7300, 10_000, 60_000])  # Pillow passes one, warns of one
@pytest.mark.parametrize("bits, colour_type", [(8, 2), (16, 0)])
def test_a_small_file_of_endless_pixels_is_refused_before_they_are_made(side, bits, colour_type):
    with pytest.raises(ValueError, match=r"the picture: has too many pixels .*; make it smaller"):
        load(png(side, bits, colour_type))
    with pytest.raises(ValueError, match="damaged"):  # this is not what is wrong with it
        load(png(100, bits, colour_type))


def test_a_photograph_of_108_megapixels(monkeypatch):
    """A JPEG is reduced while it is decoded: its 12,000 x 9,000 pixels are never made."""
    made, flat = [], own_image._flat

    def spy(picture):
        made.append(picture.size)
        return flat(picture)

    monkeypatch.setattr(own_image, "_flat", spy)
    assert colour(load(saved(Image.new("L", (12_000, 9000), 90), "JPEG"))) == (90, 90, 90)
    assert made == [(1500, 1125)]


@pytest.mark.parametrize("mode, value, kind", [("LAB", (128, 0, 0), "TIFF"), ("I;16", 70, "PNG")])
def test_colours_that_would_be_shown_wrongly_are_refused(mode, value, kind):
    with pytest.raises(ValueError, match=rf"its colours are {mode[0]}.*save it as PNG or JPEG"):
        load(saved(Image.new(mode, (40, 40), value), kind))


# ---- choosing


@pytest.fixture
def colab(monkeypatch):
    """Colab's upload dialog: what each upload gives, or raises."""
    answers = []

    def upload():
        if isinstance(answers[0], Exception):
            raise answers.pop(0)
        return answers.pop(0)

    module = types.SimpleNamespace(files=types.SimpleNamespace(upload=upload))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=module))
    return answers


def test_nothing_given_is_none():
    assert choose("a.png") == "a.png" and choose(Path("a.png")) == Path("a.png")
    assert choose() is None and choose("", False) is None


def test_upload_elsewhere_than_in_colab_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ValueError, match="upload: this is not Colab; give the picture's path"):
        choose(upload=True)
    assert choose("a.png", upload=True) == "a.png"


def test_a_new_upload_goes_before_an_old_path(colab, capsys):
    colab += [{"me.png": b"content"}, {}, {}]
    assert choose("old.png", upload=True) == b"content"
    assert choose("old.png", upload=True) == "old.png"  # cancelled
    assert choose(upload=True) is None
    assert capsys.readouterr().out == ""


def test_of_two_uploads_the_second_is_named_as_not_used(colab, capsys):
    colab += [{"me.png": b"content", "second.png": b"other"}]
    assert choose(upload=True) == b"content"
    assert "second.png is not used" in capsys.readouterr().out


def test_a_blocked_upload_is_told_in_words(colab):
    colab += [type("MessageError", (Exception,), {})("TypeError: google.colab._files is undefined")]
    with pytest.raises(ValueError, match=r"upload: the browser blocked it .*undefined.*path"):
        choose(upload=True)
