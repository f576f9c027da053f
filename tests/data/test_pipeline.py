import dataclasses
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from bvit.data import UnreadableImageError, eval_batches, open_source, train_batches
from bvit.data import pipeline as pipeline_lib
from bvit.data.decode import center_crop, resize

SIZE = 8


@dataclasses.dataclass
class Records:
    """Random images whose label is 3 times their index; those in `broken` can't be read."""

    length: int = 10
    broken: frozenset[int] = frozenset()
    read: list[int] = dataclasses.field(default_factory=list)

    num_classes = 3000
    class_names = ()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.read.append(index)
        image = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        if index in self.broken:
            image = b"broken"
        return {"image": image, "label": 3 * index}

    def record_name(self, index):
        return f"record {index}"

    def record_key(self, index):
        return str(index)


def _train(source=None, **options):
    options = {"batch_size": 4, "image_size": SIZE, "seed": 0, "num_steps": 6} | options
    with train_batches(source or Records(), **options) as batches:
        return [dict(batch) for batch in batches]


def _eval(source=None, **options):
    options = {"batch_size": 4, "image_size": SIZE} | options
    with eval_batches(source or Records(), **options) as batches:
        return [dict(batch) for batch in batches]


def _join(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_a_batch_is_what_the_device_expects():
    for batches in (_train(), _eval()):
        for batch in batches:
            assert {name: (rows.shape, rows.dtype.name) for name, rows in batch.items()} == {
                "image": ((4, SIZE, SIZE, 3), "uint8"),
                "label": ((4,), "int32"),
                "index": ((4,), "int32"),
                "mask": ((4,), "bool"),
            }
            assert (batch["label"] == 3 * batch["index"])[batch["mask"]].all()


def test_the_same_seed_gives_the_same_batches():
    _assert_same(_train(), _train())
    assert not np.array_equal(_train()[0]["index"], _train(seed=1)[0]["index"])


def test_threads_and_the_size_of_batches_make_no_difference():
    """The stream of examples is one; it is only cut at other places."""
    _assert_same(_train(num_threads=1), _train(num_threads=5))
    _assert_same([_join(_train())], [_join(_train(batch_size=8, num_steps=3))])


def test_each_pass_sees_every_record_once_in_a_new_order():
    index = _join(_train(num_steps=15))["index"].reshape(6, 10)
    assert (np.sort(index, axis=1) == np.arange(10)).all()
    assert len({tuple(order) for order in index}) == 6


def test_passes_of_one_seed_are_not_those_of_the_next():
    first, second = (_join(_train(seed=s, num_steps=10))["index"].reshape(4, 10) for s in (0, 1))
    assert not {tuple(order) for order in first} & {tuple(order) for order in second}


def test_a_record_is_cropped_anew_in_each_pass():
    stream = _join(_train(num_steps=10))
    crops = stream["image"][stream["index"] == 4]
    assert len(crops) == 4
    assert len({crop.tobytes() for crop in crops}) == 4


def test_crops_follow_scale_and_flip():
    class Square(Records):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return record | {"image": record["image"][:, :12]}

    whole = _join(_train(Square(), scale=(1.0, 1.0), flip=False))
    full = Square()[int(whole["index"][0])]["image"]
    # No other box than the whole square has all of its area.
    np.testing.assert_array_equal(whole["image"][0], resize(full, SIZE, SIZE))
    flipped = _join(_train(Square(), scale=(1.0, 1.0)))["image"]
    same = [(a == b).all() for a, b in zip(whole["image"], flipped, strict=True)]
    mirrored = [(a == b[:, ::-1]).all() for a, b in zip(whole["image"], flipped, strict=True)]
    assert all(np.logical_xor(same, mirrored)) and 4 < sum(same) < 20


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 3], [0, 3], [1]])
@pytest.mark.parametrize("read", [_train, _eval])
def test_some_rows_are_those_of_the_whole_batch(read, rows):
    some = read(rows=rows)
    _assert_same(some, [{k: v[rows] for k, v in batch.items()} for batch in read()])


def test_only_the_given_rows_are_read():
    source = Records()
    some = _train(source, rows=[0, 3], start_step=2, num_steps=2, num_threads=1)
    assert sorted(source.read) == sorted(_join(some)["index"].tolist())


@pytest.mark.parametrize("start", [1, 3, 1000])
def test_goes_on_at_any_step_and_reads_nothing_before(start):
    source = Records()
    resumed = _train(source, start_step=start, num_steps=2, num_threads=1)
    assert len(resumed) == 2
    assert sorted(source.read) == sorted(_join(resumed)["index"].tolist())
    if start < 1000:
        _assert_same(resumed, _train()[start : start + 2])


def test_training_has_no_end():
    with train_batches(Records(3), batch_size=4, image_size=SIZE, seed=0) as batches:
        for _ in range(20):
            next(batches)


@pytest.mark.parametrize("length", [1, 2, 1001])
def test_sources_of_any_length(length):
    index = _join(_train(Records(length), batch_size=1, num_steps=length))["index"]
    assert sorted(index) == list(range(length))


@pytest.mark.parametrize("batch_size", [2, 7, 64])
@pytest.mark.parametrize("length", [1, 10, 13])
def test_evaluation_sees_every_record_once(batch_size, length):
    rows = _join(_eval(Records(length), batch_size=batch_size))
    assert rows["index"][rows["mask"]].tolist() == list(range(length))
    assert (rows["index"][~rows["mask"]] == 0).all() and (rows["image"][~rows["mask"]] == 0).all()
    for index in range(length):
        expected = center_crop(Records()[index]["image"], size=SIZE, short_side=9)
        np.testing.assert_array_equal(rows["image"][index], expected)


def test_evaluation_takes_the_given_short_side():
    (batch,) = _eval(Records(2), batch_size=2, resize=12)
    expected = Records()[1]["image"][2:10, 4:12]
    np.testing.assert_array_equal(batch["image"][1], expected)


@pytest.mark.parametrize("read", [_train, _eval])
def test_an_unreadable_image_is_named(read):
    with pytest.raises(UnreadableImageError, match=r"record 7: .*data.on_error=skip"):
        read(Records(broken=frozenset([7])))


def test_a_file_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("train/cat/1.jpg", "val/cat/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    source = open_source("folder", split="test", dir=tmp_path)
    (tmp_path / "val/cat/1.jpg").unlink()
    with pytest.raises(UnreadableImageError, match=r"val/cat/1.jpg"):
        _eval(source)


def test_training_takes_the_next_readable_record_and_counts():
    source, broken = Records(), frozenset([4, 8, 9])
    options = {"batch_size": 10, "image_size": SIZE, "seed": 0, "num_steps": 2}
    with train_batches(Records(broken=broken), **options, on_error="skip") as batches:
        skipping = [dict(batch) for batch in batches]
        assert batches.skipped == 2 * (1 + 1 + 2)
    replaced = {4: 5, 8: 0, 9: 0}
    for skip, plain in zip(skipping, _train(source, **options), strict=True):
        assert skip["index"].tolist() == [replaced.get(i, i) for i in plain["index"].tolist()]
        assert skip["mask"].all()
        kept = ~np.isin(plain["index"], list(broken))
        np.testing.assert_array_equal(skip["image"][kept], plain["image"][kept])
    _assert_same(skipping, _train(Records(broken=broken), **options, on_error="skip"))


def test_evaluation_masks_the_unreadable_and_counts():
    with eval_batches(
        Records(broken=frozenset([0, 9])), batch_size=4, image_size=SIZE, on_error="skip"
    ) as batches:
        rows = _join([dict(batch) for batch in batches])
        assert batches.skipped == 2
    assert rows["index"][rows["mask"]].tolist() == list(range(1, 9))
    assert rows["index"][:10].tolist() == list(range(10))


def test_too_many_unreadable_images_are_an_error():
    with pytest.raises(UnreadableImageError, match="in a row can't be read"):
        _train(Records(broken=frozenset(range(10))), on_error="skip")


def _grain_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain")]


def test_reads_ahead_within_bounds_and_leaves_no_threads():
    source, before = Records(), len(_grain_threads())
    batches = train_batches(source, batch_size=4, image_size=SIZE, seed=0, num_threads=3)
    next(batches)
    time.sleep(0.3)
    assert len(_grain_threads()) > before
    assert len(source.read) <= 4 * (1 + 3 + pipeline_lib.PREFETCH)
    batches.close()
    deadline = time.monotonic() + 30
    while len(_grain_threads()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_grain_threads()) <= before
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_worker_processes_give_the_same_batches_and_count(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("train", "val"):
        (tmp_path / name / "cat").mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 30 + i), (40 * i, 9, 9)).save(tmp_path / name / f"cat/{i}.jpg")
        (tmp_path / name / "cat" / "7.jpg").write_bytes(b"broken")
    source = open_source("folder", split="train", dir=tmp_path)
    options = {"batch_size": 4, "image_size": SIZE, "seed": 0, "num_steps": 5, "on_error": "skip"}
    plain = _train(source, **options)
    with train_batches(source, **options, num_workers=2) as batches:
        _assert_same([dict(batch) for batch in batches], plain)
        skipped = batches.skipped
    with train_batches(source, **options) as batches:
        list(batches)
        assert skipped == batches.skipped > 0


def test_worker_processes_pass_errors_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("train", "val"):
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / "7.jpg").write_bytes(b"broken")
    source = open_source("folder", split="test", dir=tmp_path)
    with (
        eval_batches(source, batch_size=2, image_size=SIZE, num_workers=1) as batches,
        pytest.raises(UnreadableImageError, match="7.jpg: not a readable image"),
    ):
        next(batches)


def test_encoded_and_plain_images_give_the_same():
    class Encoded(Records):
        def __getitem__(self, index):
            record, file = super().__getitem__(index), io.BytesIO()
            Image.fromarray(record["image"]).save(file, "PNG")
            return record | {"image": file.getvalue()}

    _assert_same(_train(Encoded()), _train())
    _assert_same(_eval(Encoded()), _eval())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"rows": [2, 4]}, r"rows must be some of 0 … 3, ascending.*got \[2, 4\]; None takes all"),
        ({"rows": [1, 0]}, "rows must"),
        ({"rows": [1, 1]}, "rows must"),
        ({"rows": []}, "rows must"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"on_error": "ignore"}, "raise or skip: got 'ignore'"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"num_threads": 0}, "num_threads at least 1"),
        ({"source": Records(0)}, "no records"),
    ],
)
@pytest.mark.parametrize("make", [train_batches, eval_batches])
def test_wrong_arguments_are_told(make, options, message):
    seed = {"seed": 0} if make is train_batches else {}
    options = {"source": Records(), "batch_size": 4, "image_size": SIZE} | seed | options
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "range within"),
        ({"scale": (0.5, 0.4)}, "range within"),
        ({"scale": (0.5, 1.1)}, "range within"),
        ({"seed": -1}, "must not be negative"),
        ({"start_step": -1}, "must not be negative"),
    ],
)
def test_wrong_arguments_of_training_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        _train(**options)


def test_a_short_side_below_the_crop_is_told():
    with pytest.raises(ValueError, match="resize.*at least image_size=8: got 7"):
        _eval(resize=7)
