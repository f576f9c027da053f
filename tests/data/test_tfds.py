import io
import json
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bvit.data.decode import decode
from bvit.data.sources import have_common_records, open_source
from bvit.data.tfds import TfdsSource

TRAIN, TEST = 10, 4


def _png(i):
    file = io.BytesIO()
    Image.fromarray(np.full((5 + i, 7, 3), 20 * i, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


class BvitTiny(tfds.core.GeneratorBasedBuilder):
    """A few plain images."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
        "file_name": tfds.features.Text(),
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(TRAIN),
            "validation": self._generate_examples(TEST),
        }

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": _png(i), "label": i % 2, "file_name": f"{i}.png"}


class BvitWords(BvitTiny):
    """No image."""

    FEATURES = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"text": "word", "label": i % 2}


class BvitUnlabelled(BvitTiny):
    """The test split of a competition."""

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": _png(i), "label": -1, "file_name": ""}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (BvitTiny, BvitWords, BvitUnlabelled):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def _numbers(source):
    """Which of the images the records are."""
    return [decode(source[i]["image"]).shape[0] - 5 for i in range(len(source))]


def test_reads_records_without_tensorflow(prepared):
    source = TfdsSource("bvit_tiny", "train", dir=prepared)
    assert source.class_names == ("even", "odd") and source.num_classes == 2
    numbers = _numbers(source)
    assert sorted(numbers) == list(range(TRAIN))
    for i, number in enumerate(numbers):
        record = source[i]
        assert record["label"] == number % 2 and type(record["label"]) is int
        assert (decode(record["image"]) == 20 * number).all()
    assert "tensorflow" not in sys.modules


def test_of_several_splits_the_first_that_there_is(prepared):
    for splits, count in ((("validation", "test"), TEST), (("test", "train"), TRAIN)):
        assert len(TfdsSource("bvit_tiny", splits, dir=prepared)) == count
    assert len(open_source("bvit_tiny", split="test", dir=prepared)) == TEST
    assert len(open_source("bvit_tiny", split="train", dir=prepared)) == TRAIN


def test_parts_of_splits(prepared):
    whole, first, rest = (
        _numbers(TfdsSource("bvit_tiny", split, dir=prepared))
        for split in ("train", "train[:20%]", "train[20%:]")
    )
    assert len(first) == 2 and first + rest == whole
    assert len(TfdsSource("bvit_tiny", "validation", dir=prepared)) == TEST


def test_pickles_without_the_class_of_the_builder(prepared):
    source = TfdsSource("bvit_tiny", "train[:5]", dir=prepared)
    data = pickle.dumps(source)
    assert b"BvitTiny" not in data
    copy = pickle.loads(data)
    assert _numbers(copy) == _numbers(source) and copy.record_name(3) == source.record_name(3)


def test_names_records(prepared):
    source = TfdsSource("bvit_tiny", "train[:5]", dir=prepared)
    assert source.record_name(3) == "tfds bvit_tiny, split train[:5], record 3"


def test_a_set_that_is_not_prepared_is_an_error_with_the_command(tmp_path):
    command = (
        r"(?s)is not prepared as array_record in '.*'.*python -c \"import tensorflow_datasets as "
        r"tfds; tfds.builder\('cifar10', data_dir='.*', file_format='array_record'\)"
        r".download_and_prepare\(\)\""
    )
    with pytest.raises(ValueError, match=command):
        TfdsSource("cifar10", "train", dir=tmp_path)


def test_a_set_in_a_sequential_format_is_an_error_with_the_command(tmp_path):
    builder = BvitTiny(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    file = tmp_path / "bvit_tiny" / "1.0.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    info["fileFormat"] = "tfrecord"
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match="not prepared as array_record"):
        TfdsSource("bvit_tiny", "train", dir=tmp_path)


def test_an_unknown_set_is_an_error_with_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="got 'imagenet2102'; did you mean 'imagenet2012'"):
        TfdsSource("imagenet2102", "train", dir=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'photos'"):
        TfdsSource("fotos", "train", dir=tmp_path)
    with pytest.raises(ValueError, match="catalog"):
        TfdsSource("qqqqqqqq", "train", dir=tmp_path)


def test_an_unknown_split_is_an_error(prepared):
    with pytest.raises(ValueError, match=r"bvit_tiny.*'trane'.*train.*validation"):
        TfdsSource("bvit_tiny", "trane", dir=prepared)


def test_a_set_without_images_is_an_error(prepared):
    with pytest.raises(
        ValueError, match="image .Image. and label .*'bvit_words' has (label, text|text, label);"
    ):
        TfdsSource("bvit_words", "train", dir=prepared)


def test_a_record_without_a_label_is_an_error(prepared):
    source = TfdsSource("bvit_unlabelled", "train", dir=prepared)
    with pytest.raises(ValueError, match="record 2 has no label"):
        source[2]


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("train", "train[:3]", True),
        ("train[:3]", "train[2:]", True),
        ("train[:3]", "train[3:]", False),
        ("train", "validation", False),
    ],
)
def test_parts_of_splits_that_overlap_are_found(prepared, one, other, common):
    sources = [TfdsSource("bvit_tiny", split, dir=prepared) for split in (one, other)]
    assert have_common_records(*sources) is common
