"""One encoded picture → an array of a recipe's size; the only place that decodes any.

A picture is turned as its EXIF orientation says, laid on white where it is transparent, converted to gray or RGB, and
resized (bilinear, antialiased). What may be opened is a list of formats; what its header says is judged before a pixel
is. What is NOT here: where pictures lie and how large their files may be (data/files.py, the kinds of sources).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from conf.errors import InputError, show

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
MAX_PIXELS = 64 << 20
MAX_BYTES = 64 << 20  # of a file
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow modes with more than 8 bits, which it clips on conversion
ORIENTATION = 0x0112  # EXIF tag; 1: upright

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limit is below Pillow's


def picture_shape(size: tuple[int, int], channels: int) -> tuple[int, ...]:
    """Shape of a sample: (height, width) for one channel, (3, height, width) for three."""
    return tuple(size) if channels == 1 else (channels, *size)


def check_header(content: bytes, where: str) -> Image.Image:
    """The picture with its header read and judged, its pixels not. `where` names it, as `show`n, in every InputError.

    Errors: InputError for anything but one picture of a known format, with at most 8 bits a channel and MAX_PIXELS.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(where) from None
    except (OSError, ValueError, SyntaxError):
        raise InputError(f"{where}: no picture; expected {', '.join(FORMATS)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(where)
    if image.mode in DEEP:
        raise InputError(f"{where}: more than 8 bits per channel ({image.mode}); convert it to 8")
    if getattr(image, "is_animated", False):  # to count them, n_frames would read all of the file
        raise InputError(f"{where}: holds more than one frame; expected a single picture")
    return image


def decode(content: bytes, where: str, *, size: tuple[int, int], channels: int, crop: bool = False) -> np.ndarray:
    """(height, width) for one channel, (3, height, width) for three, uint8. Errors: InputError, naming `where`.

    crop: of a picture with other proportions than `size`, the largest centred part that has them.
    """
    image = check_header(content, where)
    try:
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{where}: cannot be decoded ({show(error)}); replace it") from None
    if image.size != (size[1], size[0]):
        part = _centred(image.size, size) if crop else None
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=part)
    pixels = np.asarray(image, np.uint8)
    return pixels if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _centred(picture: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box (left, upper, right, lower) of a picture (width, height) with the proportions of `size`.

    A box as large as `size` lies on whole pixels, so that nothing is interpolated.
    """
    (width, height), (rows, columns) = picture, size
    scale = min(width / columns, height / rows)
    left, upper = (width - scale * columns) / 2, (height - scale * rows) / 2
    if scale == 1:
        left, upper = left // 1, upper // 1
    return (left, upper, left + scale * columns, upper + scale * rows)


def _too_large(where: str) -> InputError:
    return InputError(f"{where}: more than {MAX_PIXELS >> 20} Mi pixels; make it smaller")
