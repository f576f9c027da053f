import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from bvit.data import file_index
from bvit.data.file_index import class_folders, index_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _touch(root, *names):
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _settle(root):
    """Makes folders look as if nothing had changed lately."""
    past = time.time() - 3600
    for folder, _, _ in os.walk(root, topdown=False):
        os.utime(folder, (past, past))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    _touch(
        root,
        "dog/b.jpg",
        "dog/a.JPEG",
        "dog/deep/er/c.png",
        "cat/1.webp",
        "cat/note.txt",
        "cat/._1.jpg",
        "cat/.thumbs/1.jpg",
        ".hidden/1.jpg",
        "readme.jpg",
        "ant/é ü.tiff",
    )
    _settle(root)
    return str(root)


def _scan_is_an_error(monkeypatch):
    monkeypatch.setattr(file_index, "_scan", lambda root: pytest.fail("listed again"))


def _paths(index):
    return [index.path(row) for row in range(len(index))]


def test_lists_images_in_order(root):
    index = index_files(root)
    expected = ["ant/é ü.tiff", "cat/1.webp", "dog/a.JPEG", "dog/b.jpg", "dog/deep/er/c.png"]
    assert _paths(index) == [os.path.join(root, name) for name in expected]
    assert index.relative_path(0) == os.fsencode("ant/é ü.tiff")
    assert index.class_names == ("ant", "cat", "dog")
    assert index.labels.tolist() == [0, 1, 2, 2, 2] and index.labels.dtype == np.int32


def test_agrees_with_a_walk(tmp_path):
    rng = np.random.default_rng(0)
    names = {f"c{rng.integers(9)}/{'x' * rng.integers(9)}{i}.jpg" for i in range(500)}
    _touch(tmp_path / "many", *names)
    index = index_files(str(tmp_path / "many"))
    assert _paths(index) == sorted(str(path) for path in (tmp_path / "many").rglob("*.jpg"))
    classes = [index.class_names[label] for label in index.labels]
    assert classes == [Path(path).parent.name for path in _paths(index)]


def test_a_class_may_be_a_link(root, tmp_path):
    _touch(tmp_path / "elsewhere", "1.jpg")
    os.symlink(tmp_path / "elsewhere", Path(root, "emu"))
    os.symlink(root, Path(root, "dog", "circle"))  # is not followed
    assert _paths(index_files(root))[-1] == os.path.join(root, "emu", "1.jpg")


def test_names_of_any_bytes(tmp_path):
    folder = os.fsencode(tmp_path / "odd") + b"/\xff\xfe"
    os.makedirs(folder)
    for name in (b"new\nline.jpg", b"\x80.jpg"):
        with open(folder + b"/" + name, "w"):
            pass
    _settle(tmp_path / "odd")
    for _ in range(2):  # listed, then from the cache
        paths = _paths(index_files(str(tmp_path / "odd")))
        assert len(paths) == 2 and all(os.path.exists(path) for path in paths)


def test_is_small_and_pickles(root):
    index = index_files(root)
    copy = pickle.loads(pickle.dumps(index))
    assert _paths(copy) == _paths(index)
    assert index.names.tobytes().decode() == "é ü.tiff1.webpa.JPEGb.jpgdeep/er/c.png"
    assert index.ends.tolist() == [10, 16, 22, 27, 40]


def test_lists_only_once(root, monkeypatch):
    first = index_files(root)
    _scan_is_an_error(monkeypatch)
    again = index_files(root)
    assert _paths(again) == _paths(first) and again.class_names == first.class_names
    np.testing.assert_array_equal(again.labels, first.labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: _touch(root, "dog/new.jpg"),
        lambda root: _touch(root, "dog/deep/er/new.jpg"),
        lambda root: _touch(root, "emu/new.jpg"),
        lambda root: os.remove(Path(root, "dog/a.JPEG")),
        lambda root: os.rename(Path(root, "dog/a.JPEG"), Path(root, "dog/z.JPEG")),
        lambda root: os.rename(Path(root, "cat"), Path(root, "lion")),
    ],
)
def test_lists_again_after_a_change(root, change):
    before = _paths(index_files(root))
    change(root)
    after = _paths(index_files(root))
    assert after != before
    assert all(os.path.exists(path) for path in after)


def test_a_folder_that_is_gone_is_a_change(root):
    index_files(root)
    for name in ("dog/deep/er/c.png", "dog/deep/er", "dog/deep"):
        path = Path(root, name)
        path.unlink() if path.is_file() else path.rmdir()
    assert len(index_files(root)) == 4


def test_a_list_of_what_has_just_changed_is_not_kept(root, cache):
    _touch(root, "dog/new.jpg")
    index_files(root)
    assert not list(cache.rglob("*.npz"))


def test_two_folders_have_two_lists(root, tmp_path):
    _touch(tmp_path / "other", "cow/1.jpg")
    _settle(tmp_path / "other")
    for _ in range(2):
        assert index_files(str(tmp_path / "other")).class_names == ("cow",)
        assert len(index_files(root)) == 5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a list", None])
def test_a_damaged_list_is_made_again(root, cache, damage):
    index_files(root)
    (file,) = cache.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    assert len(index_files(root)) == 5
    assert len(index_files(root)) == 5


def test_a_cache_that_can_not_be_written_is_done_without(root, cache):
    cache.write_text("not a folder")
    assert len(index_files(root)) == 5


def test_no_class_folders_is_an_error(tmp_path):
    _touch(tmp_path / "flat", "1.jpg", "2.jpg", ".hidden/3.jpg")
    with pytest.raises(ValueError, match="one folder of images for each class.*holds no folders"):
        class_folders(str(tmp_path / "flat"))
    with pytest.raises(ValueError, match="holds no folders"):
        index_files(str(tmp_path / "flat"))


def test_a_class_without_images_is_an_error(root):
    _touch(root, "eel/readme.txt")
    with pytest.raises(ValueError, match=r"there are none in .*eel.*; add some, or remove"):
        index_files(root)
