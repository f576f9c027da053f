"""Broken image files give pixels or an UnreadableImageError: no crash, no hang, bounded memory.

python -m pytest tests/fuzz/test_fuzz_images.py --fuzz-examples=20000
"""

import io
import struct
import zlib

import cv2
import hypothesis
import numpy as np
from hypothesis import strategies as st
from mutations import broken, few
from PIL import Image
from watched import fixture

from bvit.data.decode import (
    PNG_START,
    UnreadableImageError,
    center_crop,
    decode,
    decode_grey,
    random_resized_crop,
)

HEIGHT, WIDTH = 24, 40


def _files():
    """Small files of every kind that the formats have."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 4), np.uint8)
    colour = Image.fromarray(noise).resize((WIDTH, HEIGHT))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "camera"})
    kinds = {
        "JPEG": [
            ("RGB", {}),
            ("RGB", {"progressive": True, "subsampling": 0}),
            ("RGB", {"exif": exif, "restart_marker_rows": 1}),
            ("L", {}),
            ("CMYK", {}),
        ],
        "PNG": [("RGB", {}), ("RGBA", {"exif": exif}), ("P", {}), ("1", {}), ("I;16", {})],
        "WEBP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGBA", {"exif": exif})],
        "GIF": [("P", {}), ("L", {"interlace": 0})],
        "TIFF": [
            ("RGB", {}),
            ("RGBA", {"compression": "tiff_lzw"}),
            ("CMYK", {"compression": "tiff_adobe_deflate"}),
            ("L", {"compression": "packbits"}),
            ("RGB", {"compression": "jpeg"}),
            ("1", {"compression": "group4"}),
        ],
        "AVIF": [("RGB", {"speed": 10}), ("RGBA", {"speed": 10, "subsampling": "4:4:4"})],
        "BMP": [("RGB", {}), ("P", {})],
        "PPM": [("RGB", {}), ("L", {})],
    }
    for form, variants in kinds.items():
        for mode, options in variants:
            file = io.BytesIO()
            image = colour.convert("L" if mode == "I;16" else mode)
            if mode == "I;16":
                image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            image.save(file, form, **options)
            yield file.getvalue()
    for form in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):  # of several frames or pages
        file = io.BytesIO()
        frames = [colour.convert("RGB").rotate(90 * i) for i in range(3)]
        frames[0].save(file, form, save_all=True, append_images=frames[1:])
        yield file.getvalue()
    wide = np.asarray(colour).astype(np.uint16) * 257
    for options in ([], [cv2.IMWRITE_TIFF_ROWSPERSTRIP, HEIGHT]):
        yield cv2.imencode(".tiff", wide, options)[1].tobytes()


FILES = list(_files())


def _with_checksums(png):
    """A PNG whose checksums are right, so that what lies below them is reached."""
    data, at = bytearray(png), len(PNG_START)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def read(data):
    """Decodes a file in every way there is; returns how many of them gave an image."""
    ways = (
        decode,
        decode_grey,
        lambda data: decode(data, reduction=4),
        lambda data: center_crop(data, size=8, short_side=8),
        lambda data: random_resized_crop(data, np.random.default_rng(0), size=8),
    )
    images = 0
    for way in ways:
        try:
            pixels = way(data)
        except UnreadableImageError as error:
            assert str(error)
        else:
            assert pixels.dtype == np.uint8 and pixels.size
            images += 1
    return images


watched = fixture(read)


def test_what_is_broken_was_readable(watched):
    assert all(map(watched, FILES))


@few(500)
@hypothesis.given(broken(FILES), st.booleans())
def test_a_broken_image_is_read_or_refused(watched, data, checksums):
    if checksums and data.startswith(PNG_START):
        data = _with_checksums(data)
    hypothesis.event("image" if watched(data) else "refused")
