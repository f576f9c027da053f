import functools
import json
import math
import shutil
import tempfile
from pathlib import Path

import dm_pix
import jax
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from trained import CLASSES, SIZE, run_directory, write_picture

from bvit import config as config_lib
from bvit import experiment as setup
from bvit import sharding
from bvit.evaluation.evaluator import make_corrupt
from bvit.interrupt import SignalWatch
from bvit.run import Run
from bvit.studies import deblurring
from bvit.training.loop import train_and_evaluate
from configs.deblur_or_not import get_config

CONDITIONS = ("noisy:blur", "wiener:noisy:blur", "sharp", "richardson_lucy:stored:blur")
COSTS = {
    "direct": {"ms": 1.0, "gflops": 0.1},
    "wiener": {"ms": 2.0, "gflops": 0.2},
    "richardson_lucy": {"ms": 9.0, "gflops": 0.9},
}
# Windows of dm-pix's SSIM, which are 11 pixels wide and leave no margin.
WINDOWS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def answered(name, better=0):
    """Of 100 images 40 are right directly, 60 deblurred: 30 gained, 10 lost."""
    direct = np.arange(100) >= 60 - better
    deblurred = np.arange(100) % 100 < 60
    deblurred[:10] = direct[:10]
    right = {("noisy:blur", "direct"): direct, ("noisy:blur", "wiener"): deblurred}
    right["stored:blur", "richardson_lucy"] = ~direct
    return deblurring.Tested(name, right, COSTS)


def test_cells_are_what_was_deblurred_and_the_same_images_before_it():
    assert deblurring.cells(CONDITIONS) == {
        ("noisy:blur", "direct"): "noisy:blur",
        ("noisy:blur", "wiener"): "wiener:noisy:blur",
        ("stored:blur", "richardson_lucy"): "richardson_lucy:stored:blur",
    }
    assert deblurring.cells(["sharp", "blur"]) == {}


def test_a_stored_image_is_blurred_as_one_that_is_not():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    stored, exact = (
        make_corrupt(name, seed=0, mesh=mesh)(image, np.arange(2))
        for name in ("stored:blur", "blur")
    )
    np.testing.assert_allclose(stored, np.round(np.asarray(exact) * 255) / 255, atol=1e-6)


def test_each_line_is_compared_with_the_first_on_the_same_images():
    header, direct, wiener, _ = deblurring.accuracy_lines([answered("a")])
    assert header == ["run", "method", "ms", "GFLOPs", "noisy:blur", "stored:blur"]
    assert direct[:4] == ["a", "direct", "1.00", "0.100"] and direct[4].startswith("40.0 [")
    assert direct[5] == "not run"
    assert wiener[4].startswith("50.0: +10.0 [") and wiener[2] == "2.00"


def test_several_models_stand_in_one_table_beside_the_first():
    lines = deblurring.accuracy_lines([answered("a"), answered("b", better=20)])
    by_name = {tuple(line[:2]): line[4:] for line in lines[1:]}
    assert len(by_name) == 6 and {len(line) for line in lines} == {6}
    assert by_name["b", "direct"][0].startswith("60.0: +20.0 [+")
    assert by_name["a", "direct"][1] == "not run"
    # The first line with stored images is another one.
    assert by_name["a", "richardson_lucy"][1].startswith("60.0 [")
    assert by_name["b", "richardson_lucy"][1].startswith("40.0: -20.0 [")


def test_the_plot_has_a_panel_for_each_kind_of_image():
    figure = deblurring.draw([answered("a"), answered("b")])
    assert [axes.get_title() for axes in figure.axes] == ["noisy:blur", "stored:blur"]
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 60 for axes in figure.axes)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"a, direct", "b, wiener"} <= labels and len(labels) == 6


def transforms(count, side):
    """Operations of real transforms of side×side values."""
    return count * 2.5 * side**2 * math.log2(side**2) / 1e9


def test_operations_are_those_of_the_transforms_and_little_else():
    # The kernel and three channels, there and back. Margins are 18 and 9 pixels: 72 + 36 = 108.
    wiener = deblurring.gflops("wiener", 72)
    assert 1 < wiener / transforms(7, 108) < 1.2
    assert wiener < deblurring.gflops("wiener_blind", 72) < 1.4 * wiener
    # 30 steps of two filters; all are counted.
    assert 1 < deblurring.gflops("richardson_lucy", 72) / transforms(30 * 12 + 1, 90) < 1.2


def test_quality_is_the_mean_over_the_images_without_padding():
    image = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    image[1:] = image[1:] // 4 + 90  # with less contrast, and so less to lose
    batches = [
        {"image": image[:2], "index": np.arange(2), "mask": np.array([True, True])},
        {"image": image[[2, 0]], "index": np.array([2, 0]), "mask": np.array([True, False])},
    ]
    cell = ("gaussian:1", "direct")
    found = deblurring.restored(batches, {cell: "gaussian:1"}, seed=0)[cell]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    blurred = np.asarray(make_corrupt("gaussian:1", seed=0, mesh=mesh)(image, np.arange(3)))
    pairs = list(zip(np.float32(image / 255), blurred, strict=True))
    psnr = [peak_signal_noise_ratio(one, seen, data_range=1) for one, seen in pairs]
    assert found[0] == pytest.approx(np.mean(psnr), rel=1e-4)
    windows = [
        structural_similarity(one, seen, data_range=1, channel_axis=2, full=True, **WINDOWS)[1]
        for one, seen in pairs
    ]
    ssim = [window[5:-5, 5:-5].mean() for window in windows]
    assert found[1] == pytest.approx(np.mean(ssim), rel=1e-3)
    assert dm_pix.psnr(*pairs[0]) < dm_pix.psnr(*pairs[1])  # the images differ in it


@functools.cache
def evaluated():
    """A finished run on three images, as they are and deblurred, and its results."""
    top = Path(tempfile.mkdtemp())
    for i, name in enumerate(CLASSES):
        write_picture(top / "data" / "train" / name / "0.png", seed=i)
        write_picture(top / "data" / "val" / name / "0.png", seed=i)
        write_picture(top / "data" / "val" / name / "copy_0.png", seed=i + 10)
    config = get_config(f"run={run_directory()}").unlock()
    assert len(config_lib.words(config.eval.conditions)) == 14
    config.data.dir = str(top / "data")
    config.data.exclude = "copy_*"
    config.eval.conditions = "stored:gaussian:1,wiener:stored:gaussian:1"
    run = Run.begin(top / "run", config_lib.to_dict(config))
    results = train_and_evaluate(setup.prepare(config), run, SignalWatch())
    run.close()
    return run.path, results


def test_the_command_makes_the_tables_and_the_plot(tmp_path, capsys):
    path, results = evaluated()
    capsys.readouterr()
    text, plot = tmp_path / "table.md", tmp_path / "plot.png"
    deblurring.main([str(path), f"--to={text}", f"--plot={plot}"])
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.read_text().splitlines()
    ]
    direct, wiener = (line[1:] for line in lines if line[:1] == ["run"] and line[1] != "method")
    forward = results["rows"][0]["gflops"]
    assert float(direct[1]) > 0 and float(direct[2]) == pytest.approx(forward, abs=6e-4)
    extra = deblurring.gflops("wiener", SIZE)
    assert float(wiener[2]) == pytest.approx(forward + extra, abs=6e-4) and extra > 1e-3
    top1 = [100 * row["top1"] for row in results["rows"]]
    assert direct[3].startswith(f"{top1[0]:.1f} [")
    assert wiener[3].startswith(f"{top1[1]:.1f}: {top1[1] - top1[0]:+.1f} [")
    psnr = [float(line[1].split(" dB")[0]) for line in lines if " dB, 0." in "".join(line[1:2])]
    assert len(psnr) == 2 and psnr[0] < psnr[1]
    assert Image.open(plot).width > 300
    assert capsys.readouterr().out == ""


def test_the_images_are_those_that_the_run_was_tested_on(monkeypatch):
    path, _ = evaluated()
    seen = []
    monkeypatch.setattr(deblurring, "measure", lambda *_: {})
    monkeypatch.setattr(
        deblurring, "restored", lambda batches, *_, **__: seen.extend(batches) or {}
    )
    deblurring.study([path])
    assert sum(batch["mask"].sum() for batch in seen) == len(CLASSES)


def test_what_can_not_be_studied_is_an_error(tmp_path, capsys):
    path, _ = evaluated()
    other = tmp_path / "other"
    shutil.copytree(path, other)
    config = json.loads((path / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 1}))
    for folders, message in (
        ([tmp_path], "is no run directory"),
        ([run_directory()], "deblurred nothing: evaluate configs/deblur_or_not.py"),
        ([path, other], "were not tested on the same images: seed is 0 and 1"),
    ):
        with pytest.raises(SystemExit):
            deblurring.main([str(folder) for folder in folders])
        assert message in capsys.readouterr().err
