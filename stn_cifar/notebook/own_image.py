"""A picture of one's own, of any kind, made into what the model takes."""

import contextlib
import io
import os
import stat
import warnings
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..console import say
from ..distortions import OUTSIDE
from ..files import typed_path

# Pixels only: other kinds, such as EPS, Pillow gives to programs that run what is in them.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")
MAX_BYTES = 200_000_000  # of the file
MAX_PIXELS = 52_000_000  # to decode, at up to 25 bytes each; a JPEG is reduced meanwhile
SAVE_AS = "open it in a picture program and save it as PNG or JPEG"


def choose(path: str = "", upload: bool = False):
    """The picture to load: with `upload`, in Colab, a file that the person is asked for; or `path`.

    None if there is neither, or if the person cancels. ValueError where an upload is not possible.
    """
    if not upload:
        return path or None
    try:
        from google.colab import files
    except ImportError:
        if path:
            return path
        raise ValueError("upload: this is not Colab; give the picture's path instead") from None
    try:
        uploaded = files.upload()  # name -> content; empty if cancelled
    except Exception as error:  # MessageError, of a module that is not public
        raise ValueError(f"upload: the browser blocked it ({error}); allow third-party cookies for "
                         "Colab, or drag the file into its Files panel and give its path") from None
    for name in list(uploaded)[1:]:
        say(f"{name} is not used: one picture at a time")
    return next(iter(uploaded.values()), path or None)


def load(source, size: int = 32, channels: int = 3) -> Tensor:
    """A picture, as uint8 (channels, size, size); channels: 3, or 1 for grey.

    source: a path or file:// address, a file's content, an open file, a PIL image; or an array or
    tensor (H, W), (H, W, C) or (C, H, W), uint8 or floating point in [0, 1].
    Turned upright as its EXIF says, what is transparent laid on the mean colour, its middle square
    cut out, reduced with anti-aliasing; of an animation, the first frame. What cannot be read is a
    ValueError that says what would be right, a file that is not there a FileNotFoundError.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels}; must be 1 or 3")
    name = str(source)[:200] if isinstance(source, (str, os.PathLike)) else "the picture"
    if isinstance(source, (np.ndarray, Tensor)):
        source = _from_array(source)
    content = b"" if isinstance(source, Image.Image) else _content(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata, say, which is not used
            picture = source if isinstance(source, Image.Image) else _open(content, 4 * size)
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture = _flat(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        heic = content[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")
        kind = "an empty file" if not content else "HEIC" if heic else "no picture, or of a kind"
        raise ValueError(f"{name}: {kind} that cannot be read here; {SAVE_AS}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: has too many pixels (a PNG may have {MAX_PIXELS:,}, a JPEG more)"
                         "; make it smaller") from None
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{name}: damaged, cut off, or of an unusual kind ({error}); {SAVE_AS}"
                         ) from error
    picture = picture.convert("RGB" if channels == 3 else "L")
    (width, height), side = picture.size, min(picture.size)
    middle = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, middle, reducing_gap=4)
    pixels = np.array(picture).reshape(size, size, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _content(source, name: str) -> bytes:
    """What is in the file, at most MAX_BYTES; or an error that says what to do."""
    if hasattr(source, "read"):
        with contextlib.suppress(AttributeError, OSError):
            source.seek(0)
        source = source.read(MAX_BYTES)
        if isinstance(source, str):
            raise ValueError(f"{name}: is open as text; open it with mode 'rb'")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"{name}: a {type(source).__name__}; must be a path, a file's content, an "
                         "open file, a PIL image, an array or a tensor")
    text = str(source).strip(" '\"")
    if text.startswith("file:"):
        source = url2pathname(urlsplit(text).path)
    elif "://" in text or text.startswith("data:"):
        raise ValueError(f"{name}: is an address; save the picture, and give the file's path")
    path = typed_path(source)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{name}: no such file in {path.absolute().parent}; give a "
                                "picture's whole path") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name}: is a folder, a pipe or a device; must be a picture's file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{name}: has {status.st_size:,} bytes; must have {MAX_BYTES:,} at most")
    return path.read_bytes() if status.st_size else b""  # Linux has files of no size and no end


def _open(content: bytes, least: int) -> Image.Image:
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    picture = Image.open(io.BytesIO(content), formats=formats)
    picture.draft(picture.mode, (least, least))  # a JPEG is reduced while it is decoded
    return picture


def _from_array(values: np.ndarray | Tensor) -> Image.Image:
    if isinstance(values, Tensor):
        values = (values.float() if values.is_floating_point() else values).detach().cpu().numpy()
    found = f"the picture: {values.dtype}, shape {values.shape}"
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.dtype.kind == "f" and values.size and 0 <= values.min() <= values.max() <= 1:
        values = (255 * values).round().astype(np.uint8)
    values = values[..., 0] if values.shape[2:] == (1,) else values
    if (values.dtype, values.ndim, values.shape[2:]) not in (
            (np.uint8, 2, ()), (np.uint8, 3, (3,)), (np.uint8, 3, (4,))) or not values.size:
        raise ValueError(f"{found}; must be uint8, or floating point in [0, 1]; (H, W), (H, W, 3) "
                         "or (3, H, W)")
    return Image.fromarray(values)


def _flat(picture: Image.Image) -> Image.Image:
    """`picture` with 8 bits a channel and nothing transparent."""
    if picture.mode == "LAB":  # Pillow converts it without complaint, and wrongly
        raise ValueError("its colours are LAB")
    if picture.mode.startswith(("I", "F")):  # grey of 16 or 32 bits; Pillow cuts off above 255
        values = np.nan_to_num(np.array(picture, np.float32), copy=False)
        tops = (65535,) if picture.mode.startswith("I;16") else (1, 255, 65535)
        top = next((top for top in tops if values.max() <= top), values.max())
        values *= 255 / top
        return Image.fromarray(values.round(out=values).clip(0, 255).astype(np.uint8))
    if picture.mode in ("L", "RGB", "CMYK") and "transparency" not in picture.info:
        return picture
    picture, ground = picture.convert("RGBA"), Image.new("RGB", picture.size, OUTSIDE)
    ground.paste(picture, mask=picture)
    return ground
