"""Decodes and crops images on the host, with libjpeg-turbo and OpenCV: bytes to uint8 RGB pixels.

Pure functions of their arguments. Blur and every other change of the pixels comes later, on the
device.
"""

import contextlib
import functools
import math
import struct
import zlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from bvit.data.headers import (
    JPEG_END,
    PNG_START,
    UnreadableImageError,
    check_size,
    is_jpeg,
    is_plain_jpeg,
    open_image,
    silence,
    upright_size,
)

Pixels = UInt8[np.ndarray, "_height _width 3"]

# Crops of training: Szegedy et al. 2015, "Going deeper with convolutions", as in torchvision.
ASPECT_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10

# What the pixels of a PNG follow from, animations left out; and its orientation. Others are colour
# profiles and texts.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
# The start of a baseline frame in colour, before height and width (ITU-T T.81, B.2.2). With a
# smaller height written there, a decoder stops earlier.
BASELINE_FRAME = b"\xff\xc0\x00\x11\x08"
# Rows decoded below a crop: the last rows are interpolated differently where colour is subsampled.
ROWS_BELOW = 8
# A JPEG decoder can leave out the finest frequencies: the image is smaller, and decoded faster.
REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_COLOR_8,
}
# Its sharpness changes too. Measured on 34 ImageNet photographs against decoding in full, the
# median variance of the Laplacian, by which patches are ranked, is 177 % where the reduced image is
# barely large enough, 88 % where it is twice as large as needed (and 1.2 levels off on average),
# 101 % at three times.
REDUCED_MARGIN = 2.0
# Filters of the evaluation crop.
INTERPOLATIONS = ("bilinear", "bicubic")
# An image that shrinks by more than this shrinks by a whole factor first.
MAX_TRIANGLE = 3
# Modes that Pillow's convert("RGB") takes to 0–255 without clipping; wider ones it would clip.
PILLOW_8_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def decode(data: bytes, *, reduction: int = 1) -> Pixels:
    """Decodes a JPEG, PNG, WebP, GIF, TIFF, AVIF, BMP, PPM or HEIC image to RGB.

    Greyscale is repeated over three channels, CMYK and palettes are converted, 16 bits become 8, an
    alpha channel is dropped (as Pillow's `convert("RGB")` does), and a JPEG or PNG with an EXIF
    orientation is turned upright. JPEGs without EXIF go to libjpeg-turbo; all else, and what
    libjpeg-turbo rejects, to OpenCV; what OpenCV rejects to Pillow, which is slower and stricter.

    Args:
      data: the bytes of the file.
      reduction: 1, 2, 4 or 8; makes a JPEG smaller by this factor while it is decoded (sides are
        rounded up). For JPEG only: other formats would be subsampled without antialiasing.

    Returns:
      The pixels, uint8 [h, w, 3], RGB.

    Raises:
      UnreadableImageError: `data` holds no image, one of another format, or only a part of one,
        which is never filled in; or so many pixels that decoding takes more than 1 GB.
    """
    if reduction not in REDUCED_FLAGS:
        raise ValueError(f"reduction must be one of {sorted(REDUCED_FLAGS)}: got {reduction}.")
    check_size(data)
    # Some OpenCV 4 releases fill in the rest of a JPEG that was cut short, without an error.
    if is_jpeg(data) and not data.endswith(JPEG_END):
        return _decode_with_pillow(data, reduction)
    if reduction == 1 and is_plain_jpeg(data):
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(data)
    plain = _plain_png(data) if data.startswith(PNG_START) else data
    if plain is None:
        return _decode_with_pillow(data, reduction)
    silence()
    try:
        pixels = cv2.imdecode(np.frombuffer(plain, np.uint8), REDUCED_FLAGS[reduction])
    except cv2.error:  # of an empty file, or more pixels than OpenCV's limit
        pixels = None
    if pixels is None:
        return _decode_with_pillow(data, reduction)
    return pixels


def random_resized_crop(
    image: bytes | Pixels,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = ASPECT_RATIO,
    flip: bool = True,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crops an image at random, resizes the crop to a square, and mirrors it with probability 1/2.

    The crop's distribution is that of torchvision's `RandomResizedCrop` (see `draw_box`). A JPEG is
    decoded at a lower resolution where the crop then still has twice `size` pixels along both
    sides, which moves it by at most half a pixel of the result.

    Args:
      image: bytes of a file, or uint8 pixels [h, w, 3].
      rng: the only source of randomness. `flip` does not change which crop is drawn.
      size: side of the result, in pixels.
      scale: range of the crop's share of the image's area, within (0, 1].
      ratio: range of the crop's width over its height.
      flip: whether to mirror left and right with probability 1/2.

    Returns:
      The crop, uint8 [size, size, 3], RGB.

    Raises:
      UnreadableImageError: as for `decode`.
    """
    lazy = _LazyImage(image)
    mirror = rng.random() < 0.5
    box = draw_box(lazy.height, lazy.width, rng, scale=scale, ratio=ratio)
    crop = resize(lazy.cut(box, scale=size / min(box[2:])), size, size)
    return cv2.flip(crop, 1) if flip and mirror else crop


def center_crop(
    image: bytes | Pixels, *, size: int, short_side: int, interpolation: str = "bilinear"
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes an image to a given short side and cuts out the central square.

    Sides and offsets are rounded as torchvision's `Resize` and `CenterCrop` round them. A JPEG is
    decoded at a lower resolution where its short side then still has twice `short_side` pixels.

    Args:
      image: bytes of a file, or uint8 pixels [h, w, 3].
      size: side of the result, in pixels.
      short_side: of the image before the crop, in pixels; at least `size`.
      interpolation: "bilinear", of which `resize` is a fast form; or "bicubic", by Pillow, from
        the full resolution: what timm evaluates most weights with.

    Returns:
      The crop, uint8 [size, size, 3], RGB.

    Raises:
      UnreadableImageError: as for `decode`.
      ValueError: `short_side` is smaller than `size`, or there is no such interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}: got {interpolation!r}."
        )
    if short_side < size:
        raise ValueError(
            f"a centre crop of {size} px needs a short side of at least {size} px: got "
            f"{short_side}; use a larger short side or a smaller crop."
        )
    lazy = _LazyImage(image)
    shorter = min(lazy.height, lazy.width)
    height, width = (int(short_side * side / shorter) for side in (lazy.height, lazy.width))
    top, left = round((height - size) / 2), round((width - size) / 2)
    whole = 0, 0, lazy.height, lazy.width
    if interpolation == "bicubic":
        # Only the crop is computed: along rows and then along columns, as Pillow resizes the whole.
        full = Image.fromarray(lazy.cut(whole, scale=1.0))
        across, down = lazy.width / width, lazy.height / height
        rows = left * across, 0, (left + size) * across, lazy.height
        columns = 0, top * down, size, (top + size) * down
        narrow = full.resize((size, lazy.height), Image.Resampling.BICUBIC, rows)
        return np.array(narrow.resize((size, size), Image.Resampling.BICUBIC, columns))
    pixels = resize(lazy.cut(whole, scale=short_side / shorter), height, width)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def draw_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop, as torchvision's `RandomResizedCrop.get_params` does.

    Its area is uniform in `scale`, the logarithm of its aspect ratio uniform over that of `ratio`,
    its place uniform among those where it fits. After ten boxes that do not fit: the largest
    central one whose aspect ratio lies within `ratio`.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      rng: source of randomness.
      scale: range of the box's share of the area.
      ratio: range of width over height.

    Returns:
      (top, left, height, width) of the box, in pixels.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers((height - box_height + 1, width - box_width + 1))
            return int(top), int(left), box_height, box_width
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize(pixels: Pixels, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resizes as Pillow's bilinear filter does: with antialiasing along each side that shrinks.

    That filter weighs pixels by a triangle as wide as two pixels of the result. Here the image is
    convolved with such a triangle and then interpolated linearly: the same for whole factors, close
    to it between (0.8 levels off at most, the median of the mean over 34 ImageNet photographs, and
    the variance of the Laplacian within 5 %), and three times as fast.

    Args:
      pixels: uint8 [h, w, 3].
      height: of the result.
      width: of the result.

    Returns:
      uint8 [height, width, 3].
    """
    # Triangles for large factors would take long: of those, a whole factor is left to plain means.
    rows, columns = (
        -(-old // max(1, int(old / new / MAX_TRIANGLE)))
        for old, new in ((pixels.shape[0], height), (pixels.shape[1], width))
    )
    if (rows, columns) != pixels.shape[:2]:
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    down, across = _triangle(rows / height), _triangle(columns / width)
    if len(down) > 1 or len(across) > 1:
        pixels = cv2.sepFilter2D(pixels, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


@functools.lru_cache(4096)
def _triangle(factor: float) -> Float[np.ndarray, " taps"]:
    """The filter that gives Pillow's triangle of that factor, with linear interpolation after it.

    For a whole factor n that is max(0, n - |x|) / n² at the pixels x: between these the triangle is
    linear. Other factors take a mixture of the two next to them, in proportion.
    """
    n = max(1, math.floor(factor))
    share = max(0.0, factor - n)
    distance = np.abs(np.arange(-n, n + 1)) if share else np.abs(np.arange(1 - n, n))
    low, high = (np.maximum(0, m - distance) / m**2 for m in (n, n + 1))
    weights = np.rint((low + share * (high - low)) * 256)
    # OpenCV rounds weights to 1/256 each; their sum must be one, or the result is brighter.
    weights[len(weights) // 2] += 256 - weights.sum()
    return weights / 256


class _LazyImage:
    """An image whose size is known before it is decoded, so that a resolution can be chosen."""

    def __init__(self, image: bytes | Pixels) -> None:
        self._jpeg = image if isinstance(image, bytes) and is_jpeg(image) else None
        if self._jpeg is not None:
            self.height, self.width = upright_size(self._jpeg)
        else:
            self._pixels = decode(image) if isinstance(image, bytes) else image
            self.height, self.width = self._pixels.shape[:2]

    def cut(self, box: tuple[int, int, int, int], *, scale: float) -> Pixels:
        """The pixels of a box, at a resolution that can be brought down to `scale` times the full.

        Args:
          box: (top, left, height, width) in pixels of the full resolution.
          scale: by which the box will be resized.
        """
        top, left, height, width = box
        enough = REDUCED_MARGIN * scale
        reduction = max(r for r in REDUCED_FLAGS if r == 1 or r * enough <= 1)
        if self._jpeg is None or reduction == 1:
            return self._rows_down_to(top + height)[top:, left : left + width]
        pixels = decode(self._jpeg, reduction=reduction)
        down, across = pixels.shape[0] / self.height, pixels.shape[1] / self.width
        rows = slice(round(top * down), round((top + height) * down))
        return pixels[rows, round(left * across) : round((left + width) * across)]

    def _rows_down_to(self, bottom: int) -> Pixels:
        """The rows above `bottom`, without decoding more of a plain JPEG than that takes."""
        if self._jpeg is None:
            return self._pixels[:bottom]
        whole, short = (
            BASELINE_FRAME + struct.pack(">HH", height, self.width)
            for height in (self.height, min(self.height, bottom + ROWS_BELOW))
        )
        if short != whole and whole in self._jpeg and is_plain_jpeg(self._jpeg):
            jpeg = self._jpeg.replace(whole, short, 1)
            # Not strict: the data after these rows would be an error.
            with contextlib.suppress(ValueError):
                return simplejpeg.decode_jpeg(jpeg, strict=False)[:bottom]
        return decode(self._jpeg)[:bottom]


def decode_grey(data: bytes) -> UInt8[np.ndarray, "_height _width"]:
    """Decodes an image at its full resolution to grey, in a third of the memory of its colours.

    Raises:
      UnreadableImageError: as for `decode`.
    """
    check_size(data)
    if is_plain_jpeg(data):
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(data, "GRAY")[..., 0]
    return cv2.cvtColor(decode(data), cv2.COLOR_RGB2GRAY)


def _plain_png(data: bytes) -> bytes | None:
    """A PNG without what does not change its pixels, about which libpng prints warnings.

    Returns:
      The bytes to decode; None for a PNG that is cut short or has a wrong checksum, about which
      libpng prints errors.
    """
    kept, start, ended = [PNG_START], len(PNG_START), False
    while not ended and start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if kind in PNG_CHUNKS:
            chunk = data[start:end]
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
                return None
            kept.append(chunk)
        start, ended = end, kind == b"IEND"
    return b"".join(kept) if ended else None


def _decode_with_pillow(data: bytes, reduction: int) -> Pixels:
    with open_image(data) as image:
        if image.mode not in PILLOW_8_BIT_MODES:
            raise UnreadableImageError(f"pixels of Pillow's type {image.mode!r} are not supported")
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        ImageOps.exif_transpose(image, in_place=True)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
