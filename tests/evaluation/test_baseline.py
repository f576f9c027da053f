import numpy as np
import pytest

from bvit.evaluation.baseline import BINS, histogram_nearest_neighbour


def _loop(train, labels, test):
    """The definition, with np.histogram in float64."""

    def features(image):
        edges = np.linspace(0, 256, BINS + 1)
        counts = [np.histogram(image[..., c], edges)[0] for c in range(image.shape[-1])]
        return np.concatenate(counts) / image[..., 0].size

    known = [features(image) for image in train]
    predicted = []
    for image in test:
        own = features(image)
        distances = [np.abs(own - other).sum() for other in known]
        predicted.append(labels[int(np.argmin(distances))])
    return np.array(predicted)


def test_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    levels = rng.integers(1, 256, (20, 1, 1, 3))
    train = (rng.random((20, 9, 7, 3)) * levels).astype(np.uint8)
    test = (rng.random((15, 6, 8, 3)) * levels[:15]).astype(np.uint8)
    labels = rng.permutation(20)
    np.testing.assert_array_equal(
        histogram_nearest_neighbour(train, labels, test), _loop(train, labels, test)
    )


def test_knows_colours_apart_and_not_where_they_are():
    rng = np.random.default_rng(1)
    red, green = np.zeros((2, 8, 8, 3), np.uint8)
    red[:4, :, 0] = 200
    green[:4, :, 1] = 200
    shuffled = [rng.permutation(image.reshape(64, 3)).reshape(8, 8, 3) for image in (green, red)]
    labels = histogram_nearest_neighbour(
        np.stack([red, green]), np.array([4, 7]), np.stack(shuffled)
    )
    assert labels.tolist() == [7, 4]


def test_of_equals_the_first():
    image = np.full((3, 4, 4, 1), 9, np.uint8)
    assert histogram_nearest_neighbour(image, np.array([5, 6, 7]), image[:1]).tolist() == [5]


def test_nothing_to_test():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    assert histogram_nearest_neighbour(image, np.array([0]), image[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("train", "labels", "test", "message"),
    [
        (np.zeros((1, 4, 4, 3)), [0], np.zeros((1, 4, 4, 3), np.uint8), "train_images must be"),
        (np.zeros((1, 4, 4, 3), np.uint8), [0], np.zeros((4, 4, 3), np.uint8), "test_images must"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], np.zeros((1, 4, 4, 3), np.uint8), "2 images and 1"),
        (np.zeros((0, 4, 4, 3), np.uint8), [], np.zeros((1, 4, 4, 3), np.uint8), "at least one"),
        (np.zeros((1, 4, 4, 3), np.uint8), [0], np.zeros((1, 4, 4, 1), np.uint8), "3 and 1"),
    ],
)
def test_wrong_input_is_an_error(train, labels, test, message):
    with pytest.raises(ValueError, match=message):
        histogram_nearest_neighbour(train, np.array(labels, np.int64), test)
