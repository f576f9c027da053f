"""What image files say of themselves: format, size and orientation; none is decoded here."""

import contextlib
import functools
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import simplejpeg
from PIL import Image, UnidentifiedImageError

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_SIZE = slice(16, 24)  # where width and height are
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# The standard places EXIF first; some programs put a little before it.
EXIF, EXIF_WITHIN = b"Exif\0", 2**14
EXIF_ORIENTATION = 0x0112
# Orientations 5 to 8 of the EXIF standard exchange rows and columns.
FIRST_TRANSPOSED_ORIENTATION = 5
# What is decoded; other formats of Pillow and OpenCV are rare, and one of Pillow's runs PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM", "HEIF")
# A file of a few kB can claim to be as large as memory. An image is refused if decoding it could
# take more than this, by the bytes that a pixel takes in all buffers of the decoders (the most of
# any path, measured on 25 million pixels).
MOST_BYTES = 10**9
BYTES_A_PIXEL = {"JPEG": 10, "WEBP": 25, "AVIF": 37}
BYTES_A_PIXEL_OF_OTHERS = 15  # and of a JPEG in CMYK


class UnreadableImageError(ValueError):
    """An image that can't be decoded: broken, cut short, or of an unknown format."""


@functools.cache
def silence() -> None:
    """OpenCV would print why it rejects a file, and Pillow its own limit; here an error says it."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"PIL\b")


def is_jpeg(data: bytes) -> bool:
    """Whether an image begins as a JPEG does."""
    return data.startswith(JPEG_START)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether the image is a JPEG that seems whole and has no EXIF orientation."""
    return is_jpeg(data) and data.endswith(JPEG_END) and data.find(EXIF, 0, EXIF_WITHIN) < 0


def upright_size(data: bytes) -> tuple[int, int]:
    """Upright height and width, from the header alone.

    Raises:
      UnreadableImageError: as `check_size`.
    """
    height, width = check_size(data)
    if is_plain_jpeg(data):
        return height, width
    with open_image(data) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    return (width, height) if orientation >= FIRST_TRANSPOSED_ORIENTATION else (height, width)


def check_size(data: bytes) -> tuple[int, int]:
    """Height and width as they are stored, from the header alone, if decoding fits into memory.

    Raises:
      UnreadableImageError: the image is of none of `FORMATS`, or too large to be decoded.
    """
    form, size = "", None
    if is_jpeg(data):
        with contextlib.suppress(ValueError):
            *size, colours, _ = simplejpeg.decode_jpeg_header(data)
            form = "" if colours in ("CMYK", "YCCK") else "JPEG"
    elif data.startswith(PNG_START) and len(data) >= PNG_SIZE.stop:
        # By Pillow, a wrong checksum of a colour profile would be an error.
        size = struct.unpack(">II", data[PNG_SIZE])[::-1]
    if size is None:
        with open_image(data) as image:
            form, size = image.format, (image.height, image.width)
    height, width = size
    if height * width * BYTES_A_PIXEL.get(form, BYTES_A_PIXEL_OF_OTHERS) > MOST_BYTES:
        raise UnreadableImageError(
            f"{width}×{height} pixels, which is too large: decoding it would take more than "
            f"{MOST_BYTES // 10**9} GB of memory"
        )
    return height, width


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that Pillow reads here; HEIF needs the package pillow-heif."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


@contextlib.contextmanager
def open_image(source: bytes | Path) -> Iterator[Image.Image]:
    """Opens a file, or the bytes of one, with Pillow; what fails is an UnreadableImageError."""
    silence()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=readable_formats()) as image:
            yield image
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:  # its text holds an address in memory
        raise UnreadableImageError("not a readable image (of no known format)") from error
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        raise UnreadableImageError(f"not a readable image ({error})") from error
