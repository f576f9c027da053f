import io
import math
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from bvit.data import decode as decode_lib
from bvit.data.decode import (
    ASPECT_RATIO,
    UnreadableImageError,
    center_crop,
    decode,
    decode_grey,
    draw_box,
    random_resized_crop,
    resize,
)

EXIF_ORIENTATION = 0x0112


def _test_image(height, width, seed=0, grain=8):
    """A smooth random image, so that a lossy format keeps it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // grain + 2, width // grain + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _encode(image, format, **options):
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, format, **options)
    return file.getvalue()


def _jpeg(image, **options):
    return _encode(image, "JPEG", quality=95, **options)


def _exif(tags):
    exif = Image.Exif()
    exif.update(tags)
    return exif


def _difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
        ("P", "GIF"),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode, format):
    image = Image.fromarray(_test_image(60, 80)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(_test_image(60, 80, seed=1)[..., 0]))
    data = _encode(image, format)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (60, 80, 3)
    assert _difference(pixels, expected).max() <= 1  # CMYK rounds


def test_sixteen_bits_become_eight():
    grey = _test_image(30, 20)[..., 0]
    pixels = decode(_encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_images_stand_upright(orientation, format):
    data = _encode(_test_image(40, 64), format, exif=_exif({EXIF_ORIENTATION: orientation}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data), expected)
    crop = center_crop(data, size=32, short_side=40)
    top, left = (expected.shape[0] - 32) // 2, (expected.shape[1] - 32) // 2
    np.testing.assert_array_equal(crop, expected[top : top + 32, left : left + 32])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_part_of_a_image_is_an_error(format, share):
    data = _encode(_test_image(200, 300, grain=2), format)
    with pytest.raises(UnreadableImageError, match="not a readable image"):
        decode(data[: int(len(data) * share)])


def test_part_of_a_jpeg_whose_thumbnail_is_whole_is_an_error():
    comment = {0x9286: b"\xff\xd9"}  # with the marker that ends a JPEG
    data = _jpeg(_test_image(200, 300), exif=_exif(comment))
    with pytest.raises(UnreadableImageError):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(1000)])
@pytest.mark.parametrize("read", [decode, lambda data: center_crop(data, size=8, short_side=8)])
def test_no_image_is_an_error(read, data):
    with pytest.raises(UnreadableImageError):
        read(data)


def test_wide_pixels_are_not_clipped():
    data = _encode(Image.fromarray(np.full((8, 8), 300.0, np.float32)), "TIFF")
    with pytest.raises(UnreadableImageError, match="'F'"):
        decode_lib._decode_with_pillow(data, 1)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = _jpeg(_test_image(40, 50), exif=_exif({EXIF_ORIENTATION: 6}))
    np.testing.assert_array_equal(decode(data + b"more"), decode(data))
    assert decode(data + b"more", reduction=2).shape == (25, 20, 3)


def test_what_libjpeg_warns_of_is_decoded_all_the_same():
    data = _jpeg(_test_image(50, 40))
    warned_of = data[:-2] + b"more" + data[-2:]
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(warned_of)
    np.testing.assert_array_equal(decode(warned_of), decode(data))


KINDS = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "restarts": ("RGB", {"subsampling": 2, "restart_marker_rows": 1}),
    "grey": ("L", {}),
    "progressive": ("RGB", {"progressive": True}),
    "CMYK": ("CMYK", {}),
    "turned": ("RGB", {"exif": _exif({EXIF_ORIENTATION: 6})}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_below_a_crop_are_not_decoded_and_change_nothing(monkeypatch, kind):
    mode, options = KINDS[kind]
    data = _jpeg(Image.fromarray(_test_image(201, 167)).convert(mode), **options)
    pixels, heights = decode(data), []

    def spy(*args, **kwargs):
        heights.append(len(plain(*args, **kwargs)))
        return plain(*args, **kwargs)

    plain = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for seed in range(40):
        crops = (
            random_resized_crop(image, np.random.default_rng(seed), size=64, scale=(0.1, 0.6))
            for image in (data, pixels)
        )
        np.testing.assert_array_equal(*crops)
    if kind in ("4:4:4", "4:2:2", "4:2:0", "restarts"):
        assert np.mean(heights) < 0.9 * 201


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_reduction_rounds_sides_up(reduction):
    pixels = decode(_jpeg(_test_image(61, 83)), reduction=reduction)
    assert pixels.shape == (math.ceil(61 / reduction), math.ceil(83 / reduction), 3)


def test_other_reductions_are_an_error():
    with pytest.raises(ValueError, match="reduction must be one of"):
        decode(_jpeg(_test_image(8, 8)), reduction=3)


def _pillow(pixels, height, width):
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _error(pixels, height, width):
    """Differences from Pillow's bilinear filter, but for the border, which it treats its way."""
    difference = resize(pixels, height, width).astype(int) - _pillow(pixels, height, width)
    return np.abs(difference)[3:-3, 3:-3]


@pytest.mark.parametrize("height", [30, 20, 60, 75, 120])
@pytest.mark.parametrize("width", [60, 40, 120, 130])
def test_resize_by_whole_factors_and_enlarging_are_pillows(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)
    assert _error(pixels, height, width).max() <= 2  # rounds up to four times


@pytest.mark.parametrize("factor", [1.1, 1.3, 1.5, 1.7, 2.2, 2.5, 2.9, 3.4, 5.9, 6, 7.3, 9])
def test_resize_by_other_factors_is_nearly_pillows(factor):
    noise = np.random.default_rng(0).integers(0, 256, (360, 540, 3), np.uint8)
    height, width = int(360 / factor), int(540 / factor)
    plain = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    without = np.abs(plain.astype(int) - _pillow(noise, height, width)).mean()
    assert _error(noise, height, width).mean() < min(7, 0.65 * without)


@pytest.mark.parametrize("level", [1, 37, 254, 255])
def test_resize_keeps_the_brightness(level):
    pixels = np.full((60, 60, 3), level, np.uint8)
    for side in range(4, 90):
        assert (resize(pixels, side, 31) == level).all()


def test_resize_to_the_same_size_changes_nothing():
    pixels = _test_image(9, 7)
    np.testing.assert_array_equal(resize(pixels, 9, 7), pixels)


def test_boxes_follow_the_law():
    rng = np.random.default_rng(0)
    boxes = [draw_box(1000, 1500, rng, scale=(0.1, 0.3), ratio=(0.5, 2.0)) for _ in range(3000)]
    top, left, height, width = np.array(boxes).T
    area, aspect = height * width / 1.5e6, np.log2(width / height)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 1000).all() and (left + width <= 1500).all()
    # Uniform: extremes, mean, and deviation = range / √12; within five standard errors.
    for values, low, high in ((area, 0.1, 0.3), (aspect, -1, 1), (top / (1000 - height), 0, 1)):
        assert low - 0.01 <= values.min() < values.max() <= high + 0.01
        deviation = (high - low) / math.sqrt(12)
        assert abs(values.mean() - (low + high) / 2) < 5 * deviation / math.sqrt(3000)
        assert abs(values.std() / deviation - 1) < 0.05


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((10, 1000), (0, 493, 10, 13)),  # 10 · 4/3 wide
        ((1000, 10), (493, 0, 13, 10)),
        ((50, 50), (0, 0, 50, 50)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_boxes_that_never_fit_give_way_to_a_central_one(size, box):
    rng = np.random.default_rng(0)
    assert draw_box(*size, rng, scale=(1.0, 1.0), ratio=ASPECT_RATIO) == box


@pytest.mark.parametrize("seed", range(4))
def test_crop_is_the_box_resized_and_mirrored(seed):
    pixels = _test_image(90, 120)
    options = {"size": 32, "scale": (0.2, 0.9)}
    crop = random_resized_crop(pixels, np.random.default_rng(seed), flip=True, **options)
    straight = random_resized_crop(pixels, np.random.default_rng(seed), flip=False, **options)
    rng = np.random.default_rng(seed)
    mirrored = rng.random() < 0.5
    top, left, height, width = draw_box(90, 120, rng, scale=(0.2, 0.9), ratio=ASPECT_RATIO)
    box = pixels[top : top + height, left : left + width]
    np.testing.assert_array_equal(straight, resize(box, 32, 32))
    np.testing.assert_array_equal(crop, straight[:, ::-1] if mirrored else straight)
    assert crop.shape == (32, 32, 3) and crop.dtype == np.uint8


def test_half_of_the_crops_are_mirrored():
    rising = np.tile(np.arange(64, dtype=np.uint8)[:, None], (64, 1, 3))
    crops = [random_resized_crop(rising, np.random.default_rng(i), size=8) for i in range(400)]
    falling = sum(int(crop[0, 0, 0]) > int(crop[0, -1, 0]) for crop in crops)
    assert 150 < falling < 250


def test_small_images_are_decoded_in_full():
    data = _jpeg(_test_image(90, 120))
    np.testing.assert_array_equal(
        random_resized_crop(data, np.random.default_rng(3), size=64),
        random_resized_crop(decode(data), np.random.default_rng(3), size=64),
    )
    np.testing.assert_array_equal(
        center_crop(data, size=56, short_side=64), center_crop(decode(data), size=56, short_side=64)
    )


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_at_a_lower_resolution_and_look_the_same(monkeypatch, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    # Position as colour: half a pixel of the result is two levels.
    across, down = np.linspace(0, 255, 1603), np.linspace(0, 255, 1203)[:, None]
    ramps = np.stack(np.broadcast_arrays(across, down, 255 - across), axis=2)
    data = _jpeg(np.rint(ramps).astype(np.uint8), exif=exif)
    full = decode(data)
    reductions = []

    def spy(data, *, reduction=1):
        reductions.append(reduction)
        return decode(data, reduction=reduction)

    monkeypatch.setattr(decode_lib, "decode", spy)
    central = center_crop(data, size=64, short_side=73)
    assert _difference(central, center_crop(full, size=64, short_side=73)).max() <= 3
    for seed in range(8):
        crop = random_resized_crop(data, np.random.default_rng(seed), size=64)
        expected = random_resized_crop(full, np.random.default_rng(seed), size=64)
        assert _difference(crop, expected).max() <= 3
    assert reductions[0] == 8 and {4, 8} <= set(reductions)


@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (100, 100), (31, 47)])
def test_center_crop_agrees_with_pillow(shape):
    pixels = _test_image(*shape, grain=16)
    scale = 64 / min(shape)
    height, width = (int(side * scale) for side in shape)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - 56) / 2), round((width - 56) / 2)
    expected = np.asarray(image)[top : top + 56, left : left + 56]
    crop = center_crop(pixels, size=56, short_side=64)
    assert crop.shape == (56, 56, 3) and crop.flags.c_contiguous
    difference = _difference(crop, expected)  # a box against a triangle
    assert difference.max() <= 8 and difference.mean() < 1


def test_center_crop_by_bicubic_interpolation_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    crop = center_crop(pixels, size=56, short_side=64, interpolation="bicubic")
    whole = np.asarray(Image.fromarray(pixels).resize((85, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(crop, whole[4:60, 14:70])
    with pytest.raises(ValueError, match="one of bilinear, bicubic: got 'nearest'"):
        center_crop(pixels, size=56, short_side=64, interpolation="nearest")


def test_center_crop_without_resizing_is_exact():
    pixels = _test_image(64, 91)
    crop = center_crop(pixels, size=60, short_side=64)
    np.testing.assert_array_equal(crop, pixels[2:62, 16:76])  # 15.5 rounds to the even 16


def test_a_crop_larger_than_the_short_side_is_an_error():
    with pytest.raises(ValueError, match="short side of at least 64 px: got 63"):
        center_crop(_test_image(80, 80), size=64, short_side=63)


def test_files_that_decoders_complain_about_print_nothing(capfd):
    """Warnings of libpng and OpenCV would stand in the middle of a progress bar."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
    png, tiff = _encode(pixels, "PNG"), _encode(pixels, "TIFF")
    odd = png[:33] + png_chunk(b"iCCP", b"x\0\0no profile") + png_chunk(b"sBIT", b"\0\0") + png[33:]
    np.testing.assert_array_equal(decode(odd), pixels)
    unchecked = odd.replace(b"no profile", b"no PROFILE")  # a checksum that matters to no pixel
    np.testing.assert_array_equal(decode(unchecked), pixels)
    np.testing.assert_array_equal(decode(tiff), pixels)
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 255
    for broken in (
        bytes(damaged),
        png[: len(png) // 2],
        png[:40],
        tiff[: len(tiff) // 2],
        b"GIF89a",
    ):
        with pytest.raises(UnreadableImageError):
            decode(broken)
    assert capfd.readouterr() == ("", "")


def png_chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_grey_is_that_of_the_colours_at_full_resolution(form):
    pixels = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8), (0, 0), 2
    )
    grey = decode_grey(_encode(pixels, form))
    assert grey.shape == (90, 70)
    expected = cv2.cvtColor(decode(_encode(pixels, form)), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(grey.astype(int), expected.astype(int), atol=2)
