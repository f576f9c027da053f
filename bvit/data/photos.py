"""The embedded data set: which of sixteen photographs is this a crop of?

The photographs come with scikit-image's package, so nothing is downloaded. Colour, brightness and
contrast are randomised or removed, or a histogram would identify the photographs: a classifier has
to use structure, and so blur matters.
"""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bvit.data.decode import Pixels

# What scikit-image ships inside its wheel, less drawings, images that are nearly flat or too
# small, and the second view of the motorcycle. https://scikit-image.org/docs/stable/api/skimage.data
FILES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
CLASS_NAMES = tuple(Path(name).stem for name in FILES)
# The two largest are scans of over a thousand pixels, in which a small crop shows nothing.
MAX_SIDE = 768

TRAIN_CROPS, TEST_CROPS = 1024, 64  # for each class
# A quarter of a photograph is kept for testing.
TEST_TILE_EVERY = 4
# Side of a tile, in crops: smaller photographs still have two of them at the largest crop.
TILE = 2.0
# Larger crops would leave the smaller photographs no room for both training and testing.
MAX_CROP = 96
# Training records show more than test crops, as the random crop zooms into them; a crop of at least
# (1 / 1.5)² of the area is not enlarged, and so not softened.
TRAIN_MARGIN = 1.5
# Evaluation crops its records as ImageNet's, from 256 to 224.
TEST_MARGIN = 256 / 224

# The crop with most contrast among so many random places is taken, to leave out most of the sky.
PLACES = 4
# Ranges of the tone curve, and of the mean and standard deviation of the result.
GAMMA, MEAN, DEVIATION = 2.0, (96.0, 160.0), (25.0, 65.0)
# A lower contrast is raised as if it were this: more would show noise.
LEAST_DEVIATION = 15.0

_TEST_STREAM = 2**32


class Photos:
    """Grey crops of sixteen photographs, with the photograph as the label.

    Each photograph is divided into tiles; every fourth, in the order of their detail, is for
    testing only, so no pixel is in both a training and a test crop. A crop is turned to grey (three
    equal channels), changed by a random tone curve, given a random mean and standard deviation, and
    in half of the cases inverted. All of it follows from the record's index
    and, in training, the seed; the test crops are the same for every seed.

    Attributes:
      class_names: the names of the photographs.
      num_classes: 16.
    """

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(self, split: str, *, image_size: int, seed: int = 0) -> None:
        """Prepares the tiles; the photographs are read at the first record.

        Args:
          split: "train" (16 × 1024 records) or "test" (16 × 64).
          image_size: side of the square that the model sees, in pixels. Training records are 1.5
            times as large, test records 256/224 times; above 96 they no longer grow, and the crops
            are enlarged later.
          seed: of the training crops, not negative.

        Raises:
          ValueError: for another split, or a photograph that the installed scikit-image lacks.
        """
        if split not in ("train", "test"):
            raise ValueError(f"photos has the splits train and test: got {split!r}.")
        crop = min(image_size, MAX_CROP)
        self._train = split == "train"
        self._side = round(crop * (TRAIN_MARGIN if self._train else TEST_MARGIN))
        self._tile = math.ceil(crop * TILE)
        self._stream = seed if self._train else _TEST_STREAM
        _folder()

    def __len__(self) -> int:
        """Records of the split."""
        return self.num_classes * (TRAIN_CROPS if self._train else TEST_CROPS)

    def __getitem__(self, index: int) -> dict[str, Pixels | int]:
        """Cuts out record `index`: {"image": uint8 [side, side, 3], "label": int}."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        label = index % self.num_classes
        photograph = read_photograph(label)
        train_tiles, test_tiles = split_tiles(label, self._tile)
        rng = np.random.default_rng((self._stream, index))
        tiles = train_tiles if self._train else test_tiles
        crop = _random_place(photograph, tiles, self._side, rng)
        return {"image": np.repeat(retouch(crop, rng)[..., None], 3, axis=2), "label": label}

    def record_name(self, index: int) -> str:
        """The name of record `index` in messages."""
        return f"photos: crop {index} of {self.class_names[index % self.num_classes]}"

    def record_key(self, index: int) -> str:
        """The number of the record."""
        return str(index)


@functools.lru_cache(maxsize=len(FILES))
def read_photograph(label: int) -> UInt8[np.ndarray, "h w"]:
    """Reads a photograph in grey (0.299 R + 0.587 G + 0.114 B), at most 768 pixels a side."""
    with Image.open(_folder() / FILES[label]) as image:
        grey = image.convert("L")
    grey.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(grey)


@functools.lru_cache(maxsize=4 * len(FILES))
def split_tiles(label: int, least: int) -> tuple[list[tuple[slice, slice]], ...]:
    """Divides a photograph into disjoint tiles for training and for testing.

    Args:
      label: which photograph.
      least: the least side of a tile, where the photograph has two of them along that side.

    Returns:
      (training tiles, test tiles), each tile a pair of slices: rows, columns.
    """
    photograph = read_photograph(label)
    rows, columns = (_cut(side, least) for side in photograph.shape)
    tiles = [(r, c) for r in rows for c in columns]
    # Sorted by detail, so that testing has its share of both busy tiles and flat ones.
    tiles.sort(key=lambda tile: -np.abs(np.diff(photograph[tile].astype(np.int16))).mean())
    count = max(1, len(tiles) // TEST_TILE_EVERY)
    test = tiles[1::TEST_TILE_EVERY][:count]
    return [tile for tile in tiles if tile not in test], test


def retouch(crop: UInt8[np.ndarray, "h w"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w"]:
    """Randomises brightness and contrast: tone curve, mean, deviation and sign."""
    bent = (crop / np.float32(255)) ** math.exp(rng.uniform(-1, 1) * math.log(GAMMA)) * 255
    contrast = rng.uniform(*DEVIATION) / max(bent.std(), LEAST_DEVIATION)
    sign = 1 if rng.random() < 0.5 else -1
    result = sign * contrast * (bent - bent.mean()) + rng.uniform(*MEAN)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def _random_place(
    photograph: UInt8[np.ndarray, "h w"],
    tiles: list[tuple[slice, slice]],
    side: int,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "{side} {side}"]:
    """The crop with most contrast among a few places, each within one of the tiles."""
    crops = []
    for _ in range(PLACES):
        tile = photograph[tiles[rng.integers(len(tiles))]]
        top, left = (int(rng.integers(length - side + 1)) for length in tile.shape)
        crops.append(tile[top : top + side, left : left + side])
    return max(crops, key=np.std)


def _cut(length: int, least: int) -> list[slice]:
    edges = np.linspace(0, length, max(1, length // least) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


@functools.cache
def _folder() -> Path:
    """Where the installed scikit-image keeps its images; found without importing it."""
    spec = importlib.util.find_spec("skimage")
    folders = (spec and spec.submodule_search_locations) or ()
    for folder in (Path(place) / "data" for place in folders):
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise ValueError(
        "photos needs the images that scikit-image ships in its package, and they were not "
        "found; install it: pip install 'scikit-image>=0.25'."
    )
