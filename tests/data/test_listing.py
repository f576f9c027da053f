import pytest

from bvit.data.decode import UnreadableImageError
from bvit.data.listing import list_images, read_ahead
from bvit.data.preprocessing import Preprocessing

SMALL = Preprocessing(8, 9, "bilinear")


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.tif", ".hidden.png", ".git/3.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def below(folder, paths):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_stands_for_the_images_below_it_in_order(folder):
    paths, failures = list_images([str(folder)], [])
    assert below(folder, paths) == ["a.tif", "b/1.png", "b/2.JPG"] and not failures


def test_a_file_is_taken_whatever_its_name_and_order_and_repeats_stay(folder):
    names = [str(folder / name) for name in ("notes.txt", "a.tif", "notes.txt")]
    assert below(folder, list_images(names, [])[0]) == ["notes.txt", "a.tif", "notes.txt"]


def test_patterns_reach_into_folders(folder):
    assert below(folder, list_images([f"{folder}/**/*.png"], [])[0]) == ["b/1.png"]
    odd = folder / "[x].png"  # a name that is also a pattern
    odd.write_bytes(b"")
    assert list_images([str(odd)], []) == ([odd], {})


def test_a_dash_stands_for_the_lines_of_stdin(folder):
    lines = [f"{folder}/a.tif\r\n", "\n", f"{folder}/b"]
    paths, _ = list_images(["-", f"{folder}/notes.txt"], lines)
    assert below(folder, paths) == ["a.tif", "b/1.png", "b/2.JPG", "notes.txt"]


def test_what_is_no_image_is_named_with_the_reason(folder):
    (folder / "empty").mkdir()
    names = [f"{folder}/empty", f"{folder}/x.png", f"{folder}/*.gif"]
    paths, failures = list_images(names, [])
    assert not paths
    assert failures == dict(
        zip(names, ["no image in it", "no such file", "no such file"], strict=True)
    )


@pytest.mark.parametrize("group", [1, 2, 3, 100])
def test_files_come_in_order_in_groups_with_a_reason_where_there_is_none(folder, group):
    paths, _ = list_images([str(folder)], [])
    paths.append(folder / "gone.png")
    groups = list(read_ahead(map(str, paths), group, SMALL))
    assert [len(found) for found in groups] == [
        len(paths[start : start + group]) for start in range(0, len(paths), group)
    ]
    found = [item for items in groups for item in items]
    assert [name for name, _ in found] == list(map(str, paths))
    assert all(isinstance(error, UnreadableImageError) for _, error in found)
    assert str(found[-1][1]) == "No such file or directory"


def test_nothing_to_read_gives_no_group():
    assert list(read_ahead([], 4, SMALL)) == []
