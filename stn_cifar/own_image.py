"""A picture of one's own, of any kind, made into what the model takes."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .stn import CIFAR10_MEAN

GROUND = tuple(round(255 * mean) for mean in CIFAR10_MEAN)  # behind what is transparent: as outside the picture
SAVE_AS = "open it in a picture program and save it as PNG or JPEG"


def choose(path: str = "", upload: bool = False) -> str | bytes | None:
    """The picture to load: `path` if given; with `upload`, in Colab, a file that the person is asked for.

    None if there is neither, or if the person cancels. ValueError for `upload` outside Colab.
    """
    if path or not upload:
        return path or None
    try:
        from google.colab import files
    except ImportError:
        raise ValueError("upload: this is not Colab; give the picture's path instead") from None
    return next(iter(files.upload().values()), None)  # name -> content; empty when cancelled


def load(source: str | Path | bytes, size: int = 32, channels: int = 3) -> Tensor:
    """The picture in a file, or in a file's content, as uint8 (channels, size, size).

    Turned upright as its EXIF says, what is transparent laid on the mean colour, its middle square cut out, reduced
    with anti-aliasing. Of an animation, the first frame. channels: 3, or 1 for grey.
    A file that cannot be read as a picture is a ValueError that names it and says what would be right; so is one of
    more than Pillow's limit of 89 million pixels. One that is not there is a FileNotFoundError.
    """
    name = "the uploaded picture" if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else _content(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata, say, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = _flat(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    except UnidentifiedImageError:
        raise ValueError(f"{name}: {_kind(content)}; {SAVE_AS}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"{name}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first") from None
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{name}: damaged, cut off, or of an unusual kind ({error}); {SAVE_AS}") from error
    picture = ImageOps.fit(picture.convert("RGB" if channels == 3 else "L"), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture).reshape(size, size, channels)).permute(2, 0, 1).contiguous()


def _content(path: str | Path) -> bytes:
    """What is in the file, or an error that says what to do."""
    if "://" in str(path):
        raise ValueError(f"{path}: is an address; download the picture, and give the file's path")
    place = Path(path).expanduser()
    if place.is_dir():
        raise ValueError(f"{path}: is a folder; name a picture in it")
    if not place.exists():
        raise FileNotFoundError(f"{path}: no such file in {place.absolute().parent}; give a picture's whole path")
    return place.read_bytes()


def _kind(content: bytes) -> str:
    """In words, what a file that Pillow does not know is."""
    if not content:
        return "the file is empty"
    if b"<svg" in content[:2000].lower():
        return "SVG is a drawing, not pixels"
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "HEIC pictures cannot be read here"
    return "not a picture that can be read here"


def _flat(picture: Image.Image) -> Image.Image:
    """`picture` in RGBA with 8 bits a channel and nothing transparent."""
    if picture.mode == "LAB":  # Pillow converts it without complaint, and wrongly
        raise ValueError("its colours are LAB")
    if picture.mode.startswith(("I", "F")):  # grey of 16 or 32 bits, of which Pillow would cut off what is above 255
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        tops = (65535,) if picture.mode.startswith("I;16") else (1, 255, 65535)
        top = next((top for top in tops if values.max() <= top), values.max())
        picture = Image.fromarray((255 * values / top).round().clip(0, 255).astype(np.uint8))
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*GROUND, 255)), picture.convert("RGBA"))
