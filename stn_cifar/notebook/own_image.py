"""A picture of one's own, made into what the model takes."""

import io
import os
import warnings

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


def load(source: str | os.PathLike | bytes, size: int = 32, channels: int = 3) -> Tensor:
    """A picture, as uint8 (channels, size, size); channels: 3, or 1 for grey.

    source: a path, or a file's content. Turned upright as its EXIF says, what is transparent laid
    on the mean colour, its middle square cut out, reduced with anti-aliasing; of an animation, the
    first frame. What cannot be read is a ValueError that says what would be right, a file that is
    not there a FileNotFoundError.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels}; must be 1 or 3")
    name = "the picture" if isinstance(source, bytes) else str(source)[:200]
    content = source if isinstance(source, bytes) else _content(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata, say, which is not used
            Image.init()
            formats = [kind for kind in FORMATS if kind in Image.OPEN]
            picture = Image.open(io.BytesIO(content), formats=formats)
            picture.draft(picture.mode, (4 * size, 4 * size))  # reduces a JPEG while it is decoded
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture = _flat(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise ValueError(f"{name}: no picture, or of a kind that cannot be read here, such as HEIC;"
                         f" {SAVE_AS}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: has too many pixels (a PNG may have {MAX_PIXELS:,}, a JPEG more)"
                         "; make it smaller") from None
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{name}: damaged, cut off, or of an unusual kind ({error}); {SAVE_AS}"
                         ) from error
    picture = ImageOps.fit(picture.convert("RGB" if channels == 3 else "L"), (size, size),
                           Image.Resampling.LANCZOS)
    pixels = np.array(picture).reshape(size, size, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _content(source: str | os.PathLike, name: str) -> bytes:
    """What is in the file, at most MAX_BYTES; or an error that says what to do."""
    if "://" in str(source) or str(source).startswith("data:"):
        raise ValueError(f"{name}: is an address; save the picture, and give the file's path")
    path = typed_path(source)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file in {path.absolute().parent}; give a "
                                "picture's whole path")
    if not path.is_file():
        raise ValueError(f"{name}: is a folder, a pipe or a device; must be a picture's file")
    if (count := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{name}: has {count:,} bytes; must have {MAX_BYTES:,} at most")
    return path.read_bytes()


def _flat(picture: Image.Image) -> Image.Image:
    """`picture` with 8 bits a channel and nothing transparent."""
    if picture.mode == "LAB" or picture.mode.startswith(("I", "F")):  # converted wrongly
        raise ValueError(f"its colours are {picture.mode}")
    if picture.mode in ("L", "RGB", "CMYK") and "transparency" not in picture.info:
        return picture
    picture, ground = picture.convert("RGBA"), Image.new("RGB", picture.size, OUTSIDE)
    ground.paste(picture, mask=picture)
    return ground
