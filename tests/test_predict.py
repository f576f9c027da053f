import csv
import functools
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import skimage.data
from jobs import ROOT
from PIL import Image
from published import NAME, add_pico, write_weights
from trained import CLASSES, SIZE, run_directory, write_picture

import bvit
from bvit import predict, pretrained
from bvit.classify import classify
from bvit.data.blur_width import blur_width
from bvit.data.decode import center_crop, decode_grey
from bvit.data.imagenet import class_names
from bvit.image.pixels import to_float
from bvit.run import Run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of several sizes in nested folders, two of one name, and two broken files."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, shape in enumerate([(50, 70), (32, 32), (20, 90), (200, 40)]):
        write_picture(folder / f"{i}.png", i, shape)
    write_picture(folder / "deeper" / "0.png", 4)
    (folder / "broken.jpg").write_bytes(b"no picture")
    whole = (folder / "3.png").read_bytes()
    (folder / "deeper" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not a picture, and not named as one")
    return folder


@pytest.fixture
def command(capsys):
    """Runs the command on the tiny run; returns (exit code, stdout, stderr)."""

    def command(*arguments, run=None):
        run_directory()  # what training it prints is not the command's
        capsys.readouterr()
        code = 0
        try:
            predict.main([f"--run={run or run_directory()}", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return command


def read_rows(text):
    return [json.loads(line) for line in text.splitlines()]


def seen(path):
    return center_crop(path.read_bytes(), size=SIZE, short_side=round(SIZE * 256 / 224))


def by_hand(paths, policy):
    """The probabilities of images, by the plain function."""
    run = Run(run_directory()).load()
    image = to_float(np.stack([seen(path) for path in paths]))
    mean, std = tuple(run.config.data.mean), tuple(run.config.data.std)
    logits = classify(run.model, run.variables, image, policy, mean=mean, std=std)
    return np.asarray(jax.nn.softmax(logits))


def test_a_run_is_loaded_as_it_was_saved_from_eight_devices():
    run = Run(run_directory()).load()
    saved = ocp.StandardCheckpointer().restore(run_directory() / "checkpoints" / "2" / "model")
    assert run.step == 2 and run.class_names == CLASSES
    jax.tree.map(np.testing.assert_array_equal, run.variables["params"], saved["ema_params"])
    assert not np.array_equal(saved["params"]["head"]["bias"], saved["ema_params"]["head"]["bias"])
    devices = {leaf.device for leaf in jax.tree.leaves(run.variables)}
    assert devices == {jax.devices()[0]}


def test_every_readable_picture_gets_the_probabilities_of_the_model(command, pictures):
    code, out, err = command("--format=jsonl", "--batch_size=2", pictures)
    rows = read_rows(out)
    names = ["0.png", "1.png", "2.png", "3.png", "deeper/0.png"]
    assert [row["file"] for row in rows] == [str(pictures / name) for name in names]
    # What the run trained with.
    probabilities = by_hand([pictures / name for name in names], "merge:7")
    for row, wanted in zip(rows, probabilities, strict=True):
        assert dict(row["top5"]) == pytest.approx(
            {name: float(p) for name, p in zip(CLASSES, wanted, strict=True)}, abs=1e-4
        )
        assert row["label"] == CLASSES[wanted.argmax()]
        assert row["confidence"] == pytest.approx(wanted.max(), abs=1e-4)
        assert row["tokens"] == 7 and row["policy"] == "merge:7"
    assert code == 1
    assert "2 could not be read" in err and "broken.jpg" in err and "cut.png" in err


def test_blur_is_a_sigma_and_the_share_of_blurry_patches(command, pictures, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    soft = tmp_path / "soft.png"
    cv2.imwrite(str(soft), cv2.GaussianBlur(noise, (0, 0), 6.0))
    paths = [pictures / "0.png", soft]
    _, out, _ = command("--format=jsonl", "--policy=keep", *paths)
    rows = read_rows(out)
    assert rows[0]["blurry_patches"] < rows[1]["blurry_patches"]
    for row, path in zip(rows, paths, strict=True):
        blurry = np.asarray(bvit.focus_map(to_float(seen(path)), patch_size=8) < 0.4)
        assert row["blurry_patches"] == pytest.approx(float(blurry.mean()), abs=1e-4)
        assert row["sigma"] == round(blur_width(decode_grey(path.read_bytes())), 2)
        assert row["tokens"] == 16


def test_overlays_have_the_size_of_their_images_and_lose_none_of_one_name(
    command, pictures, tmp_path
):
    readable = [pictures / "3.png", pictures / "0.png", pictures / "deeper" / "0.png"]
    _, out, _ = command("--format=jsonl", "--policy=drop:5", f"--overlays={tmp_path}", *readable)
    files = [row["overlay"] for row in read_rows(out)]
    names = ("3.overlay.jpg", "0.overlay.jpg", "0.2.overlay.jpg")
    assert files == [str(tmp_path / name) for name in names]
    for file, picture in zip(files, readable, strict=True):
        width, height = Image.open(picture).size
        assert Image.open(file).width == width and Image.open(file).height >= height


def test_overlays_replace_themselves_and_nothing_else(command, tmp_path):
    picture = write_picture(tmp_path / "y.png", 0)
    taken = write_picture(tmp_path / "y.overlay.jpg", 1)  # a picture that someone named so
    linked = tmp_path / "y.2.overlay.jpg"
    linked.symlink_to(picture)
    before = picture.read_bytes(), taken.read_bytes()
    runs = [
        command("--format=jsonl", f"--overlays={tmp_path}", *pictures)
        for pictures in ([picture], [picture], [tmp_path], [f"{tmp_path}/*.*g"])
    ]
    files = [[row["file"] for row in read_rows(out)] for _, out, _ in runs]
    own = [str(linked), str(taken), str(picture)]
    assert files[:2] == [[str(picture)]] * 2
    assert files[2] == files[3] == own  # none of the overlays that the command wrote
    overlays = [[Path(row["overlay"]).name for row in read_rows(out)] for _, out, _ in runs]
    assert overlays[0] == overlays[1] == ["y.3.overlay.jpg"]
    assert overlays[2] == overlays[3] and overlays[2][-1] == "y.3.overlay.jpg"
    assert (picture.read_bytes(), taken.read_bytes()) == before and linked.is_symlink()


def test_a_picture_that_is_an_overlay_is_not_replaced_by_its_neighbours(command, tmp_path):
    picture = write_picture(tmp_path / "y.png", 0)
    command(f"--overlays={tmp_path}", picture)
    overlay = tmp_path / "y.overlay.jpg"
    before = overlay.read_bytes()
    _, out, _ = command("--format=jsonl", f"--overlays={tmp_path}", picture, overlay)
    names = [Path(row["overlay"]).name for row in read_rows(out)]
    assert names == ["y.2.overlay.jpg", "y.overlay.overlay.jpg"]
    assert overlay.read_bytes() == before


def test_names_come_from_stdin_and_csv_has_a_line_for_each(command, pictures, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{pictures / '1.png'}\n\n{pictures}/*2.png\n"))
    code, out, _ = command("--format=csv", "-")
    assert code == 0
    first, second = csv.DictReader(io.StringIO(out))
    assert first["file"].endswith("1.png") and second["file"].endswith("2.png")
    assert first["label"] == first["label_1"] in CLASSES
    shares = [float(first[f"confidence_{place}"]) for place in (1, 2, 3)]
    assert shares == sorted(shares, reverse=True) and math.isclose(sum(shares), 1, abs_tol=1e-3)


def test_the_table_has_a_line_for_each_picture(command, pictures):
    code, out, _ = command("--policy=keep", pictures / "0.png", pictures / "1.png")
    assert code == 0
    heading, _, *lines = out.splitlines()
    assert "confidence" in heading and len(lines) == 2
    assert {len(line) for line in lines} == {len(heading)}


def test_sigma_is_in_pixels_of_the_file(command, tmp_path):
    """Five megapixels with a motion over 30 of them, of which the crop of 32 px shows nothing."""
    pixels = cv2.resize(skimage.data.coffee(), (2400, 1600), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(cv2.blur(pixels, (30, 1))).save(tmp_path / "moved.png")
    _, out, _ = command("--format=jsonl", tmp_path)
    assert read_rows(out)[0]["sigma"] == pytest.approx(30 / 12**0.5, rel=0.35)


def test_a_flat_picture_has_no_sigma_and_is_not_blurry(command, tmp_path):
    Image.new("RGB", (90, 90), "grey").save(tmp_path / "grey.png")
    grains = 128 + np.random.default_rng(0).normal(size=(96, 96, 3))
    Image.fromarray(np.uint8(grains.round())).save(tmp_path / "noise.png")
    _, out, _ = command("--format=jsonl", tmp_path)
    flat, noisy = read_rows(out)
    assert flat["sigma"] is None
    assert flat["blurry_patches"] == noisy["blurry_patches"] == 0
    assert command(tmp_path)[0] == 0


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for seed in range(frames):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        writer.write(cv2.resize(pixels, (64, 48), interpolation=cv2.INTER_NEAREST))
    writer.release()
    return path


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    while (found := capture.read())[0]:
        yield np.ascontiguousarray(found[1][..., ::-1])


def test_a_video_has_a_row_for_each_frame_and_is_drawn_on_request(command, pictures, tmp_path):
    video = write_video(tmp_path / "clip.mp4", 5)
    taken = tmp_path / "clip.overlay.mp4"
    taken.write_bytes(b"mine")
    options = ("--format=jsonl", "--policy=keep", "--batch_size=2", f"--overlays={tmp_path}")
    for _ in range(2):  # the second run replaces what the first has drawn
        code, out, err = command(*options, pictures / "0.png", video)
        image, *rows = read_rows(out)
        assert code == 0 and "6 frames in" in err and "frames/s" in err
        assert image["frame"] is None and [row["frame"] for row in rows] == [0, 1, 2, 3, 4]
        assert {row["overlay"] for row in rows} == {str(tmp_path / "clip.2.overlay.mp4")}
    run = Run(run_directory()).load()
    crops = [run.preprocess.crop(frame) for frame in frames_of(video)]
    logits = classify(run.model, run.variables, to_float(np.stack(crops)))
    wanted = np.asarray(jax.nn.softmax(logits)).max(axis=1)
    assert [row["confidence"] for row in rows] == pytest.approx(wanted, abs=1e-3)
    drawn = list(frames_of(tmp_path / "clip.2.overlay.mp4"))
    assert len(drawn) == 5 and drawn[0].shape[1] == 64 and taken.read_bytes() == b"mine"
    assert command("--format=jsonl", tmp_path)[0] == 1  # no image in the folder, only drawings
    assert {path.name for path in tmp_path.iterdir()} >= {"clip.mp4", "0.overlay.jpg"}


def test_streams_and_videos_that_can_not_be_read(command, tmp_path):
    code, _, err = command("rtsp://nowhere.invalid/x")
    assert code == 2 and "--format=jsonl" in err
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    code, out, err = command("--format=jsonl", tmp_path / "broken.mp4")
    assert code == 1 and not out and "not a readable video" in err


def test_avif_is_read_and_heic_not_passed_over_without_a_word(command, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.avif")
    (tmp_path / "b.HEIC").write_bytes(b"no picture")
    code, out, err = command("--format=jsonl", tmp_path)
    assert code == 1 and len(read_rows(out)) == 1
    assert "b.HEIC" in err and "pip install pillow-heif" in err


def test_published_weights_need_no_run_and_no_data(tmp_path, pictures, capsys, monkeypatch):
    add_pico(monkeypatch)
    ids = list(class_names())
    weights = write_weights(tmp_path / "weights.safetensors", num_classes=len(ids))
    picture = str(pictures / "3.png")
    predict.main([f"--weights={weights}", f"--model={NAME}", "--format=jsonl", picture])
    (row,) = read_rows(capsys.readouterr().out)
    model, variables, preprocess = pretrained.open(NAME, weights)
    mean, std = preprocess.mean, preprocess.std
    direct = jax.jit(functools.partial(classify, model, mean=mean, std=std))
    logits = direct(variables, preprocess(picture))
    best = int(np.argmax(logits))
    assert row["label"] == class_names()[ids[best]]
    assert row["confidence"] == pytest.approx(float(jax.nn.softmax(logits)[0, best]), abs=1e-4)
    for wrong in ([], [f"--weights={weights}", "--run=x"], ["--run=x", f"--model={NAME}"]):
        with pytest.raises(SystemExit, match="2"):
            predict.main([*wrong, picture])
        assert "name one model" in capsys.readouterr().err


def test_nothing_readable_is_told_and_is_no_success(command, tmp_path):
    code, out, err = command(tmp_path, tmp_path / "nowhere.jpg")
    assert code == 1 and not out
    assert "others are done" not in err
    assert "no image in it" in err and "no such file" in err


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_standard_input_is_bad_input(command, monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code, out, err = command("-")
    assert code == 2 and not out
    assert "standard input names no image" in err and err.count("\n") == 1


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_a_reader_that_has_seen_enough_is_no_error(pictures, form):
    """As with | head -1: the pipe is closed after a line, or before the first."""
    command = [sys.executable, "-m", "bvit.predict", f"--run={run_directory()}"]
    command += [f"--format={form}", "--batch_size=1", *[str(pictures / "0.png")] * 3]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    if form != "table":
        process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 0, err
    for word in ("bvit:", "Traceback", "Exception", "rror"):
        assert word not in err


BAD_INPUT = {
    "misspelt flag": (["--polcy=keep", "x.png"], "did you mean --policy?"),
    "misspelt format": (["--format=jsn", "x.png"], "jsonl"),
    "no pictures": ([], "IMAGES"),
    "misspelt policy": (["--policy=merg:7", "x.png"], "did you mean 'merge'?"),
    "impossible budget": (["--policy=merge:8", "x.png"], "use 7 or 10"),
    "no budget": (["--policy=drop", "x.png"], "needs a budget"),
    "two budgets": (["--policy=drop:5:6", "x.png"], "one budget"),
    "empty batches": (["--batch_size=0", "x.png"], "batch_size"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_told_in_one_line(command, name):
    arguments, word = BAD_INPUT[name]
    code, out, err = command(*arguments)
    assert code == 2 and not out
    assert word in err and err.startswith("bvit: ") and err.count("\n") == 1


def test_a_folder_that_is_no_run_or_has_no_checkpoint(command, tmp_path):
    code, _, err = command("x.png", run=tmp_path)
    assert code == 2 and "no run directory" in err
    for name in ("config.json", "classes.json"):
        shutil.copy(run_directory() / name, tmp_path)
    code, _, err = command("x.png", run=tmp_path)
    assert code == 2 and "no checkpoint yet" in err
    (tmp_path / "classes.json").unlink()
    code, _, err = command("x.png", run=tmp_path)  # the data of the run is gone
    assert code == 2 and "classes.json" in err


def test_help_is_short_and_names_every_flag(command):
    code, out, _ = command("--help")
    assert code == 0 and len(out.splitlines()) < 60
    for flag in (
        "--run",
        "--weights",
        "--model",
        "--policy",
        "--format",
        "--overlays",
        "--batch_size",
    ):
        assert flag in out
