import csv
import io
import json
import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data

from bvit import focus
from bvit.data.decode import UnreadableImageError
from bvit.image import evidence
from bvit.image.focus_map import focus_map
from bvit.outputs import is_drawing
from bvit.survey.culling import Mover
from bvit.survey.meter import FocusMeter, host_noise_variance
from bvit.survey.reading import PIXELS_AHEAD, read_pictures

SHARP = np.ascontiguousarray(data.astronaut()[:240, :300])
BLURRED = cv2.GaussianBlur(SHARP, (0, 0), 4)
# A process of its own, which can be ended if its threads wait for each other.
AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
import cv2
from skimage import data
from bvit.survey.meter import FocusMeter

blurred = cv2.GaussianBlur(data.astronaut(), (0, 0), 4)
with ThreadPoolExecutor(4) as pool:
    print(*{found.kind for found in pool.map(FocusMeter(), 6 * [blurred])})
"""


@pytest.fixture
def folder(tmp_path):
    shots = tmp_path / "shots"
    shots.mkdir()
    Image.fromarray(SHARP).save(shots / "sharp.jpg", quality=92)
    Image.fromarray(BLURRED).save(shots / "blurred.png")
    return shots


def run(capsys, *arguments):
    """Exit code, and what is printed to both."""
    code = 0
    try:
        focus.main([str(x) for x in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_a_folder_is_told_as_json_lines(folder, capsys):
    code, out, _ = run(capsys, "--format=jsonl", folder)
    blurred, sharp = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert (sharp["verdict"], blurred["verdict"]) == ("sharp", "blurred")
    assert (sharp["width"], sharp["height"]) == (300, 240)
    assert sharp["sharp"] > 0.5 > blurred["sharp"]
    assert blurred["kind"] == "defocus"
    assert blurred["blurred"] > 0.9 > sharp["blurred"]
    assert abs(blurred["sigma"] - 4) < 1.2 > sharp["sigma"]


def test_sorted_as_csv_and_as_table(folder, capsys):
    code, out, _ = run(capsys, "--format=csv", "--sort", folder / "sharp.jpg", folder)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["verdict"] for row in rows] == ["blurred", "sharp", "sharp"]
    code, out, _ = run(capsys, folder)
    heading, _, *lines = [line.strip("| ").split(" | ") for line in out.splitlines()]
    assert tuple(map(str.strip, heading)) == focus.HEADING
    assert [line[1].strip() for line in lines] == ["blurred", "sharp"]


def test_what_cannot_be_read_is_named_and_the_rest_done(folder, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(SHARP).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(SHARP).convert("LA").save(folder / "transparent.png")
    cv2.imwrite(str(folder / "deep.png"), SHARP[..., 0].astype(np.uint16) * 257)
    Image.fromarray(SHARP[:1, :2]).save(folder / "tiny.png")
    frames = [Image.fromarray(x[:64, :64]) for x in (SHARP, BLURRED)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    code, out, err = run(capsys, "--format=jsonl", folder, folder / "absent.jpg")
    found = {json.loads(line)["file"].split("/")[-1] for line in out.splitlines()}
    assert code == 1
    assert found == {
        "animated.gif",
        "blurred.png",
        "cmyk.jpg",
        "deep.png",
        "sharp.jpg",
        "tiny.png",
        "transparent.png",
    }
    assert "3 could not be read" in err
    for name in ("broken.jpg", "empty.png", "absent.jpg: no such file"):
        assert name in err


def test_no_picture_at_all_is_an_error(capsys, monkeypatch, tmp_path, folder):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, _, err = run(capsys, "-")
    assert (code, err.count("standard input names no image")) == (2, 1)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder / 'sharp.jpg'}\n"))
    code, out, _ = run(capsys, "-", "--format=jsonl")
    assert (code, len(out.splitlines())) == (0, 1)
    (tmp_path / "none").mkdir()
    code, _, err = run(capsys, tmp_path / "none")
    assert (code, "no image in it" in err) == (1, True)
    code, _, err = run(capsys, "--dry-run", folder)
    assert (code, "--move-blurred" in err) == (2, True)


def test_maps_overwrite_only_maps(folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    mine = folder / "sharp.focus.png"
    Image.fromarray(SHARP).save(mine)
    kept = mine.read_bytes()
    for _ in range(2):
        code, _, _ = run(capsys, f"--maps={folder}", folder)
        assert code == 0
    names = {path.name for path in folder.iterdir()}
    # What a user has named so is an image like any other, and gets a map of its own.
    maps = {"blurred.focus.png", "sharp.2.focus.png", "sharp.focus.focus.png"}
    assert names == {*before, "sharp.focus.png", *maps}
    assert mine.read_bytes() == kept
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert is_drawing(folder / "blurred.focus.png") and not is_drawing(mine)
    drawn = np.asarray(Image.open(folder / "blurred.focus.png")).astype(int)
    assert drawn.shape == SHARP.shape
    assert (drawn[..., 0] - drawn[..., 2]).mean() > 40  # orange


def test_blurred_pictures_are_moved_and_nothing_is_overwritten(folder, capsys, tmp_path):
    out = tmp_path / "out"
    options = (f"--move-blurred={out}", "--format=jsonl")
    code, printed, _ = run(capsys, *options, "--dry-run", folder)
    assert (code, out.exists(), (folder / "blurred.png").exists()) == (0, False, True)
    assert json.loads(printed.splitlines()[0])["moved_to"] == str(out / "blurred.png")
    out.mkdir()
    (out / "blurred.png").write_text("somebody's")
    content = (folder / "blurred.png").read_bytes()
    code, _, _ = run(capsys, *options, folder)
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["sharp.jpg"]
    assert (out / "blurred.png").read_text() == "somebody's"
    assert (out / "blurred.2.png").read_bytes() == content
    assert Mover(out, dry_run=False).move(out / "blurred.2.png") == out / "blurred.2.png"


def test_tiles_make_what_the_whole_makes():
    large = np.tile(SHARP, (2, 2, 1))[:437, :590]
    found = FocusMeter()(large)
    whole = focus_map(jnp.asarray(large / 255, jnp.float32), patch_size=8)
    np.testing.assert_allclose(found.probability, whole, atol=2e-3)


def test_pictures_share_tiles_and_come_in_order():
    broken = UnreadableImageError("broken")
    pictures = [("a", SHARP), ("b", broken), ("c", BLURRED[:40]), ("d", SHARP[:5, :5])]
    found = list(FocusMeter().each(pictures))
    assert [name for (name, _), _ in found] == ["a", "b", "c", "d"]
    assert found[1][1] is broken
    alone = FocusMeter()(BLURRED[:40])
    np.testing.assert_allclose(found[2][1].probability, alone.probability, atol=1e-5)
    assert found[3][1].probability.shape == (1, 1)


def test_noise_on_the_host_is_that_of_the_device():
    cells = np.random.default_rng(0).uniform(0, 255, (evidence.CHANNELS, 31, 17))
    cells = cells.astype(np.float32)
    device = evidence.noise_variance(jnp.asarray(cells), jnp.ones((31, 17), bool))
    np.testing.assert_allclose(host_noise_variance(cells), device, rtol=1e-6)
    assert host_noise_variance(np.zeros_like(cells)) == 0


def test_no_more_waits_than_is_allowed(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(SHARP).save(path)
    sizes = []
    monkeypatch.setattr("bvit.survey.reading.PIXELS_AHEAD", 2 * 240 * 300)
    monkeypatch.setattr("bvit.survey.reading._read", lambda path: sizes.append(path) or SHARP)
    with read_pictures(paths, np.mean) as pictures:
        assert next(pictures)[2] == SHARP.mean()
        assert len(sizes) <= 3
        assert len(list(pictures)) == 5
    assert PIXELS_AHEAD >= 10**7
    monkeypatch.undo()
    monkeypatch.setattr("bvit.data.headers.MOST_BYTES", 1000)
    with read_pictures(paths[:1], np.mean) as pictures:
        assert isinstance(next(pictures)[1], UnreadableImageError)


def test_threads_that_look_for_motion_do_not_wait_for_each_other():
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "defocus\n", done.stderr
