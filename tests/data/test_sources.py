import numpy as np
import pytest

from bvit.data import have_common_records, open_source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("train", "val"):
        (tmp_path / "set" / name / "cat").mkdir(parents=True)
        (tmp_path / "set" / name / "cat" / "1.jpg").write_bytes(name.encode())
    return tmp_path / "set"


@pytest.mark.parametrize("split_name", ["", "train", "validation"])
def test_photos(split_name):
    source = open_source("photos", split="test", split_name=split_name, image_size=32, seed=5)
    same = open_source("photos", split="test", image_size=32)
    np.testing.assert_array_equal(source[3]["image"], same[3]["image"])
    assert len(source) == 1024


def test_photos_are_trained_on_by_size_and_seed():
    first, other = (open_source("photos", split="train", image_size=32, seed=s) for s in (0, 1))
    assert first[0]["image"].shape == (48, 48, 3)
    assert not np.array_equal(first[0]["image"], other[0]["image"])


def test_folder(folder):
    assert open_source("folder", split="train", dir=folder)[0]["image"] == b"train"
    assert open_source("folder", split="test", dir=folder)[0]["image"] == b"val"
    assert open_source("folder", split="test", split_name="all", dir=folder)[0]["image"] == b"val"
    with pytest.raises(ValueError, match="no folder 'all'"):  # which is what testing is on
        open_source("folder", split="train", split_name="all", dir=folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("photos", {"split": "val"}, "split must be train or test: got 'val'"),
        ("folder", {"split": "train"}, "folder needs data.dir"),
        ("folder", {"split": "train", "dir": "nowhere"}, "there is no folder '.*nowhere'"),
        ("photos", {"split": "train", "split_name": "train[:20%]"}, "no parts of splits"),
        ("photos", {"split": "test", "split_name": "x"}, "leave data.test_split as it is"),
        ("photo", {"split": "train"}, "did you mean 'photos'"),
        ("cifar10", {"split": "train", "dir": "nowhere"}, "not prepared"),
    ],
)
def test_what_is_wrong_is_told(name, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, **options)


def test_splits_that_are_the_same_have_common_records(folder):
    train, test, named = (
        open_source("folder", split=split, split_name=name, dir=folder)
        for split, name in (("train", ""), ("test", ""), ("test", "val"))
    )
    assert have_common_records(test, named) and not have_common_records(train, test)
