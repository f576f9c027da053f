import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bvit.data.decode import center_crop, decode, decode_grey
from bvit.data.headers import UnreadableImageError


def _encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["SPIDER", "EPS", "JPEG2000"])
def test_formats_that_nobody_asked_for_reach_no_decoder(format):
    """Pillow would run Ghostscript for an EPS file, whatever it is called."""
    data = _encode(Image.new("F" if format == "SPIDER" else "RGB", (8, 8)), format)
    with pytest.raises(UnreadableImageError, match="of no known format"):
        decode(data)


def test_heic_is_read_with_its_package():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 100, 50))).save(file)
    pixels = decode(file.getvalue())
    assert pixels.shape == (48, 64, 3)
    np.testing.assert_allclose(pixels.mean((0, 1)), (200, 100, 50), atol=4)


def _claiming(format, side):
    """A small image whose header claims to have `side` pixels along each side."""
    data = _encode(Image.new("RGB", (7, 7)), format, **{"quality": 90} if format == "WEBP" else {})
    # Width and height as they are stored: where each begins, and how.
    places, form = {
        "JPEG": ((data.find(b"\xff\xc0") + 5, data.find(b"\xff\xc0") + 7), ">H"),
        "PNG": ((16, 20), ">I"),
        "GIF": ((6, 8), "<H"),
        "BMP": ((18, 22), "<I"),
    }[format]
    data = bytearray(data)
    for place in places:
        struct.pack_into(form, data, place, side)
    if format == "PNG":
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize(
    "read",
    [decode, decode_grey, lambda data: center_crop(data, size=4, short_side=4)],
    ids=["decode", "grey", "crop"],
)
def test_an_image_too_large_for_memory_is_refused_by_its_header(format, read):
    with pytest.raises(UnreadableImageError, match="11000×11000 pixels, .* more than 1 GB"):
        read(_claiming(format, 11000))


@pytest.mark.parametrize(
    ("format", "bytes_a_pixel"), [("JPEG", 10), ("PNG", 15), ("WEBP", 25), ("AVIF", 37)]
)
def test_memory_is_counted_as_the_format_needs_it(format, bytes_a_pixel, monkeypatch):
    data = _encode(Image.new("RGB", (20, 30)), format, quality=90)
    monkeypatch.setattr("bvit.data.headers.MOST_BYTES", bytes_a_pixel * 600)
    assert decode(data).shape == (30, 20, 3)
    monkeypatch.setattr("bvit.data.headers.MOST_BYTES", bytes_a_pixel * 600 - 1)
    with pytest.raises(UnreadableImageError, match="too large"):
        decode(data)
