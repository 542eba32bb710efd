"""A picture of one's own: every kind that people have is read as it looks, and what is none is told in words."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from stn_cifar import own_image
from stn_cifar.own_image import choose, load

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
    ("I;16", 257 * 77, (77, 77, 77)),
    ("I;16", 70, (0, 0, 0)),  # nearly black of 65,535 levels
])
def test_a_plain_picture_keeps_its_colour(mode, value, expected):
    picture = load(saved(Image.new(mode, (50, 40), value)))
    assert picture.shape == (3, 32, 32)
    assert np.abs(np.subtract(colour(picture), expected)).max() <= 1


@pytest.mark.parametrize("kind, options", [("JPEG", dict(quality=95)), ("WEBP", dict(lossless=True)), ("BMP", {}),
                                           ("TIFF", {}), ("GIF", {}), ("PPM", {})])
def test_formats(kind, options):
    content = saved(Image.new("RGB", (50, 40), ORANGE), kind, **options)
    assert np.abs(np.subtract(colour(load(content)), ORANGE)).max() < 4


def test_cmyk_as_printers_have_it():
    assert np.abs(np.subtract(colour(load(saved(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"))),
                              (255, 0, 0))).max() < 5


def test_palette_with_a_transparent_colour():
    picture = Image.new("P", (40, 40), 1)
    picture.putpalette([0, 0, 0, *ORANGE])
    assert colour(load(saved(picture))) == ORANGE
    assert colour(load(saved(picture, transparency=1))) == GROUND


@pytest.mark.parametrize("values, expected", [
    (np.float32(0.5), 128), (np.float32(200.0), 200), (np.float32(np.nan), 0), (np.int32(65535 // 2), 127),
    (np.int32(200), 200)])
def test_grey_of_32_bits(values, expected):
    # a bright dot tells what white is
    pixels = np.full((40, 40), values)
    pixels[0, 0] = 1 if expected == 128 else 65535 if expected == 127 else pixels[0, 0]
    middle = load(saved(Image.fromarray(pixels), "TIFF"))[:, 16, 16]
    assert (middle.int() - expected).abs().max() <= 1


def test_16_bits_keep_their_shades():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    picture = load(saved(Image.fromarray(np.tile(ramp, (64, 1)))))
    assert (picture[0, 16].int() - torch.linspace(2, 253, 32)).abs().max() < 4  # Pillow alone: nearly all white


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0)), (2, (0, 1))])
def test_turned_upright_as_exif_says(orientation, corner):
    """The upper left quarter, as stored, is white; `corner` (row, column) is where it belongs."""
    picture = Image.new("L", (64, 64))
    picture.paste(255, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters = load(saved(picture, exif=exif))[0].float().view(2, 16, 2, 16).mean(dim=(1, 3))
    assert divmod(quarters.argmax().item(), 2) == corner


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    assert colour(load(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))) == (255, 0, 0)


# ---- size and shape


@pytest.mark.parametrize("size", [(90, 30), (30, 90)])
def test_the_middle_square_is_cut_out(size):
    picture = Image.new("RGB", size, "blue")
    left, top = (size[0] - 30) // 2, (size[1] - 30) // 2
    picture.paste((255, 0, 0), (left, top, left + 30, top + 30))
    red = torch.tensor([255, 0, 0]).view(3, 1, 1)
    assert (load(saved(picture)).int() - red).abs().max() <= 8  # the filter smears a little; one pixel aside: 255


def test_reduced_with_anti_aliasing():
    checks = ((np.indices((640, 640)).sum(0) % 2) * 255).astype(np.uint8)
    picture = load(saved(Image.fromarray(checks)))
    assert (picture.float() - 127.5).abs().max() < 3  # every 20th pixel alone would be black or white


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (31, 33), (2000, 1500)])
@pytest.mark.parametrize("to, channels", [(32, 3), (48, 1)])
def test_any_size_to_any_size(size, to, channels):
    picture = load(saved(Image.new("RGB", size, (90, 90, 90))), to, channels)
    assert picture.shape == (channels, to, to) and picture.is_contiguous()
    assert colour(picture) == (90,) * channels


def test_from_a_path_of_any_form(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my picture ü.png"
    path.write_bytes(saved(Image.new("RGB", (40, 40), ORANGE)))
    for name in (path, str(path), path.name, "~/my picture ü.png"):
        assert colour(load(name)) == ORANGE


# ---- what is no picture


def test_missing_folder_address(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: no such file in .*whole path"):
        load(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is a folder; name a picture in it"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"https://x\.org/a\.png: is an address; download"):
        load("https://x.org/a.png")


@pytest.mark.parametrize("content, words", [
    (b"", "the file is empty"),
    (b"just some text", "not a picture that can be read here"),
    (b'<?xml version="1.0"?><!-- x --><SVG width="1">', "SVG is a drawing"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC pictures cannot be read"),
])
def test_other_files_are_named_with_the_remedy(tmp_path, content, words):
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: {words}.*save it as PNG or JPEG"):
        load(path)
    with pytest.raises(ValueError, match="the uploaded picture: "):
        load(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_file_cut_off_anywhere_is_read_or_refused_in_words(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = saved(Image.fromarray(pixels), kind)
    refused = 0
    for length in range(0, len(content), max(1, len(content) // 60)):
        try:
            assert load(content[:length]).shape == (3, 32, 32)
        except ValueError as error:
            refused += 1
            assert "the uploaded picture: " in str(error) and "save it as PNG or JPEG" in str(error)
    assert refused > 25


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_damaged_file_is_read_or_refused_in_words(kind):
    random = np.random.default_rng(1)
    content = bytearray(saved(Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind))
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, min(len(content), 400), 4):
            damaged[place] = random.integers(256)
        try:
            assert load(bytes(damaged)).shape == (3, 32, 32)
        except ValueError as error:
            assert "the uploaded picture: " in str(error)


def test_a_small_file_of_endless_pixels_is_refused_before_they_are_made():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for side in (10_000, 60_000):  # Pillow warns of the one, and refuses the other
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match=r"uploaded picture: has more than 89,478,485 pixels; make it smaller"):
            load(bomb)


def test_lab_colours_are_refused_rather_than_shown_wrongly():
    with pytest.raises(ValueError, match=r"its colours are LAB.*save it as PNG or JPEG"):
        load(saved(Image.new("LAB", (40, 40), (128, 0, 0)), "TIFF"))


# ---- choosing


def test_a_path_goes_first_and_nothing_given_is_none():
    assert choose("a.png") == "a.png" and choose("a.png", upload=True) == "a.png"
    assert choose() is None and choose("", False) is None


def test_upload_elsewhere_than_in_colab_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ValueError, match="upload: this is not Colab; give the picture's path"):
        choose(upload=True)


def test_upload_in_colab_gives_the_file_and_cancelling_gives_none(monkeypatch):
    answers = [{"me.png": b"content", "second.png": b"other"}, {}]
    files = types.SimpleNamespace(upload=lambda: answers.pop(0))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(files=files))
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=sys.modules["google.colab"]))
    assert choose(upload=True) == b"content"
    assert choose(upload=True) is None


def test_ground_is_what_the_model_has_outside_the_picture():
    assert own_image.GROUND == GROUND
