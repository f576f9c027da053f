import pickle

import numpy as np
import pytest
from PIL import Image

from bvit.data import photos
from bvit.data.photos import CLASS_NAMES, Photos, read_photograph, retouch, split_tiles

SIZES = (32, 64, 96)


def _first(source, count):
    return [source[i] for i in range(count)]


def test_classes_are_balanced():
    assert Photos.num_classes == len(CLASS_NAMES) >= 10
    for split in ("train", "test"):
        source = Photos(split, image_size=32)
        labels = [source[i]["label"] for i in range(0, 4 * source.num_classes)]
        assert np.bincount(labels).tolist() == [4] * source.num_classes
        assert len(source) % source.num_classes == 0


def test_no_photograph_is_there_twice():
    thumbnails = [
        np.asarray(Image.fromarray(read_photograph(label)).resize((24, 24)), np.float64).ravel()
        for label in range(Photos.num_classes)
    ]
    correlation = np.abs(np.corrcoef(thumbnails) - np.eye(Photos.num_classes))
    assert correlation.max() < 0.8


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_disjoint_and_cover_the_photograph(size):
    for label in range(Photos.num_classes):
        count = np.zeros(read_photograph(label).shape, int)
        train, test = split_tiles(label, 2 * size)
        for tile in train + test:
            count[tile] += 1
        assert (count == 1).all()
        assert len(train) >= 1 and len(test) == max(1, (len(train) + len(test)) // 4)


@pytest.mark.parametrize("size", (*SIZES, 224))
def test_no_pixel_is_in_both_a_training_and_a_test_crop(monkeypatch, size):
    def read_marked(label):
        train, test = split_tiles(label, 2 * min(size, photos.MAX_CROP))
        marked = np.zeros(read_photograph(label).shape, np.uint8)
        for tiles, value in ((train, 1), (test, 2)):
            for tile in tiles:
                marked[tile] = value
        return marked

    marked = [read_marked(label) for label in range(Photos.num_classes)]
    monkeypatch.setattr(photos, "read_photograph", lambda label: marked[label])
    monkeypatch.setattr(photos, "retouch", lambda crop, rng: crop)
    for split, value in (("train", 1), ("test", 2)):
        source = Photos(split, image_size=size)
        for record in _first(source, 8 * source.num_classes):
            assert (record["image"] == value).all()


def test_sizes_leave_room_for_cropping():
    assert Photos("train", image_size=64)[0]["image"].shape == (96, 96, 3)
    assert Photos("test", image_size=64)[0]["image"].shape == (73, 73, 3)  # 256/224
    for split in ("train", "test"):
        largest, larger = (Photos(split, image_size=size)[0]["image"] for size in (96, 224))
        np.testing.assert_array_equal(largest, larger)


def test_crops_are_grey_and_neither_brightness_nor_contrast_tells_the_class():
    source = Photos("train", image_size=64)
    images = np.stack([record["image"] for record in _first(source, 64 * source.num_classes)])
    assert images.dtype == np.uint8
    assert (images == images[..., :1]).all()
    images = images[..., 0].reshape(64, source.num_classes, -1).astype(np.float64)
    mean, deviation = images.mean(axis=2), images.std(axis=2)
    assert mean.min() > 90 and mean.max() < 166  # 96 to 160, but for what is clipped at 0 and 255
    assert deviation.max() < 66
    # Classes differ no more than chance lets the means of 64 uniform draws differ.
    assert np.ptp(mean.mean(axis=0)) < 64 / np.sqrt(12 * 64) * 6


def test_test_crops_are_not_flat():
    source = Photos("test", image_size=64)
    assert min(record["image"].std() for record in _first(source, 16 * source.num_classes)) > 5


def test_retouching_is_monotone_and_half_of_the_results_are_negatives():
    rng = np.random.default_rng(0)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    slopes = [np.diff(retouch(ramp, rng).ravel().astype(int)) for _ in range(400)]
    assert all((slope >= 0).all() or (slope <= 0).all() for slope in slopes)
    assert 150 < sum(slope.sum() < 0 for slope in slopes) < 250


def test_a_nearly_flat_crop_stays_so():
    rng = np.random.default_rng(0)
    assert np.ptp(retouch(np.full((8, 8), 77, np.uint8), rng)) == 0
    noise = rng.integers(126, 130, (64, 64)).astype(np.uint8)
    assert max(retouch(noise, rng).std() for _ in range(20)) < 10


def test_a_record_follows_from_its_index_and_the_seed():
    train, again, other = (Photos("train", image_size=32, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(train[40]["image"], again[40]["image"])
    assert not np.array_equal(train[40]["image"], other[40]["image"])
    assert not np.array_equal(train[40]["image"], train[40 + train.num_classes]["image"])
    test, same = (Photos("test", image_size=32, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(test[40]["image"], same[40]["image"])


def test_pickles_small():
    source = Photos("test", image_size=32)
    data = pickle.dumps(source)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[5]["image"], source[5]["image"])


def test_names_say_which_photograph():
    assert Photos("train", image_size=32).record_name(17) == f"photos: crop 17 of {CLASS_NAMES[1]}"


@pytest.mark.parametrize("index", [-1, 16 * 64])
def test_indices_out_of_range(index):
    with pytest.raises(IndexError):
        Photos("test", image_size=32)[index]


def test_other_splits_are_an_error():
    with pytest.raises(ValueError, match="got 'validation'"):
        Photos("validation", image_size=32)


def test_missing_photographs_are_an_error(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    photos._folder.cache_clear()
    with pytest.raises(ValueError, match="pip install 'scikit-image"):
        Photos("train", image_size=32)
