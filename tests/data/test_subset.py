import pickle

from bvit.data.photos import Photos
from bvit.data.subset import Subset


def test_a_subset_has_the_records_of_its_places_in_their_order():
    photos = Photos("test", image_size=32)
    subset = pickle.loads(pickle.dumps(Subset(photos, [40, 3, 3])))
    assert len(subset) == 3
    assert (subset.num_classes, subset.class_names) == (photos.num_classes, photos.class_names)
    for place, record in zip((40, 3, 3), (subset[i] for i in range(3)), strict=True):
        assert record["label"] == photos[place]["label"]
        assert (record["image"] == photos[place]["image"]).all()
    assert subset.record_name(0) == photos.record_name(40)
