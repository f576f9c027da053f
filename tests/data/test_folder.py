import pickle
import shutil
from pathlib import Path

import pytest

from bvit.data.folder import FolderSource


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _fill(root, *names):
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def _names(source):
    return [source.record_name(i) for i in range(len(source))]


@pytest.mark.parametrize("test_folder", ["val", "validation", "test"])
def test_a_folder_for_each_split(tmp_path, test_folder):
    _fill(tmp_path / "set", "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg")
    _fill(tmp_path / "set" / test_folder, "cat/4.jpg", "dog/5.jpg")
    train, test = (FolderSource(split, dir=tmp_path / "set") for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.num_classes == 2
    assert train[2] == {"image": b"train/dog/3.jpg", "label": 1}
    assert test[0] == {"image": b"cat/4.jpg", "label": 0}
    assert test.record_name(1) == str(tmp_path / "set" / test_folder / "dog" / "5.jpg")


def test_val_goes_before_test(tmp_path):
    _fill(tmp_path / "set", "train/cat/1.jpg", "val/cat/2.jpg", "test/unknown/3.jpg")
    assert FolderSource("test", dir=tmp_path / "set")[0]["image"] == b"val/cat/2.jpg"


def test_to_test_needs_no_training_images(tmp_path):
    _fill(tmp_path / "set", "val/cat/2.jpg")
    assert len(FolderSource("test", dir=tmp_path / "set")) == 1
    with pytest.raises(ValueError, match="train/ is missing"):
        FolderSource("train", dir=tmp_path / "set")


def test_files_can_be_left_out_by_name_and_their_class_stays(tmp_path):
    _fill(tmp_path / "set", "val/cat/1.jpg", "val/cat/copy_1.jpg", "val/dog/copy_2.jpg")
    source = FolderSource("test", dir=tmp_path / "set", exclude="copy_*")
    assert [Path(name).name for name in _names(source)] == ["1.jpg"]
    assert source.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"data.exclude='\*' leaves some out"):
        FolderSource("test", dir=tmp_path / "set", exclude="*")


@pytest.fixture
def single(tmp_path):
    names = [f"{name}/{i}.jpg" for name in ("ant", "bee", "cow") for i in range(100)]
    return _fill(tmp_path / "single", *names)


def test_one_folder_is_divided(single):
    train, test = (FolderSource(split, dir=single) for split in ("train", "test"))
    assert sorted(_names(train) + _names(test)) == sorted(map(str, single.rglob("*.jpg")))
    assert train.class_names == test.class_names == ("ant", "bee", "cow")
    for label in range(3):
        count = sum(test[i]["label"] == label for i in range(len(test)))
        assert 2 <= count <= 20  # of 100, a tenth
    assert test[7]["image"] in test.record_name(7).encode()


def test_images_stay_on_their_side(single, tmp_path):
    before = set(_names(FolderSource("test", dir=single)))
    _fill(single, *(f"cow/more{i}.jpg" for i in range(50)))
    (single / "ant" / "3.jpg").unlink()
    after = set(_names(FolderSource("test", dir=single)))
    assert {name for name in after if "more" not in name} == before - {str(single / "ant/3.jpg")}
    shutil.move(single, tmp_path / "moved")
    moved = set(_names(FolderSource("test", dir=tmp_path / "moved")))
    assert {name.replace("moved", "single") for name in moved} == after


def test_pickles(single):
    source = FolderSource("test", dir=single)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source) and copy[3] == source[3]


def test_a_relative_folder(single, monkeypatch):
    monkeypatch.chdir(single.parent)
    assert Path(FolderSource("test", dir="single").record_name(0)).is_absolute()


def test_a_image_that_is_gone_is_an_os_error(single):
    source = FolderSource("test", dir=single)
    Path(source.record_name(0)).unlink()
    with pytest.raises(FileNotFoundError):
        source[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "there is no folder"),
        (("1.jpg",), "one folder of images for each class"),
        (("cat/1.txt",), "must hold images"),
        (("train/cat/1.jpg",), "val/ is missing"),
        (("train/cat/1.jpg", "val/1.jpg"), "one folder of images for each class"),
        (("train/cat/1.jpg", "val/cat/1.txt", "train/dog/1.jpg", "val/dog/1.jpg"), r"in .*cat"),
        (("train/cat/1.jpg", "val/dog/1.jpg"), r"1 are only in .*train.* and 1 only in .*\(.*cat"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"), "1 are only in .* and 0 only in"),
        (("cat/2.jpg",), "falls into the test split, there are only 1"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, names, message):
    _fill(tmp_path / "set", *names)
    with pytest.raises(ValueError, match=message):
        FolderSource("test", dir=tmp_path / "set")


def test_a_file_is_no_folder(tmp_path):
    _fill(tmp_path, "file.jpg")
    with pytest.raises(ValueError, match="there is no folder"):
        FolderSource("train", dir=tmp_path / "file.jpg")


def test_other_splits_are_an_error(single):
    with pytest.raises(ValueError, match="got 'val'"):
        FolderSource("val", dir=single)


def test_the_hash_is_stable(tmp_path):
    """Written down, so that a change of the hash, which would mix the splits, does not go by."""
    _fill(tmp_path / "set", *(f"cat/{i}.jpg" for i in range(40)))
    names = _names(FolderSource("test", dir=tmp_path / "set"))
    assert [Path(name).stem for name in names] == ["1", "10", "8"]


def test_a_split_can_be_a_folder_of_any_name(tmp_path):
    _fill(tmp_path / "set", "train/cat/1.jpg", "val/cat/2.jpg", "held/cat/3.jpg")
    assert FolderSource("test", dir=tmp_path / "set", name="held")[0]["image"] == b"held/cat/3.jpg"
    assert FolderSource("train", dir=tmp_path / "set", name="held")[0]["image"] == b"held/cat/3.jpg"
    with pytest.raises(ValueError, match="there is no folder 'other' in .*data.valid"):
        FolderSource("test", dir=tmp_path / "set", name="other")


def test_the_key_of_an_image_does_not_change_when_its_folder_moves(single, tmp_path):
    key = FolderSource("test", dir=single).record_key(3)
    shutil.move(single, tmp_path / "moved")
    moved = FolderSource("test", dir=tmp_path / "moved")
    assert moved.record_key(3) == key
    assert moved.record_name(3) == str(tmp_path / "moved" / key)
