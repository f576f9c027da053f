import pickle

import numpy as np
import pytest

from bvit.data.photos import Photos
from bvit.data.subset import Subset, hold_out


def test_a_subset_has_the_records_of_its_places_in_their_order():
    photos = Photos("test", image_size=32)
    subset = pickle.loads(pickle.dumps(Subset(photos, [40, 3, 3])))
    assert len(subset) == 3
    assert (subset.num_classes, subset.class_names) == (photos.num_classes, photos.class_names)
    for place, record in zip((40, 3, 3), (subset[i] for i in range(3)), strict=True):
        assert record["label"] == photos[place]["label"]
        assert (record["image"] == photos[place]["image"]).all()
    assert subset.record_name(0) == photos.record_name(40)


def keys(source):
    return [source.record_key(i) for i in range(len(source))]


def test_a_share_is_held_out_and_records_keep_their_side():
    photos = Photos("train", image_size=32)
    rest, held = hold_out(photos, 0.1)
    assert sorted(keys(rest) + keys(held)) == sorted(keys(photos))
    assert abs(len(held) / len(photos) - 0.1) < 0.01
    counts = np.bincount([int(key) % 16 for key in keys(held)])
    assert counts.min() > 70  # of 1024 of each class
    fewer, still_held = hold_out(Subset(photos, range(0, len(photos), 3)), 0.1)
    assert set(keys(still_held)) == set(keys(held)) & {*keys(still_held), *keys(fewer)}
    assert set(keys(hold_out(photos, 0.2)[1])) > set(keys(held))


@pytest.mark.parametrize("share, message", [(0.001, "to validate on"), (0.999, "to train on")])
def test_neither_side_may_be_empty(share, message):
    with pytest.raises(ValueError, match=message):
        hold_out(Subset(Photos("train", image_size=32), range(8)), share)
