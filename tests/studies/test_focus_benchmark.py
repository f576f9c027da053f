"""The benchmark of focus measures, on a few images."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from bvit.studies import focus_benchmark
from bvit.studies.focus_benchmark import (
    MEASURES,
    best_threshold,
    load,
    measure_patches,
    pooled,
    tables,
)


@pytest.fixture(scope="module")
def parts():
    image = load([], 3)[:, 40:136, 40:152]
    return [
        measure_patches(image, blur=blur, sigma=3.0, noise=noise, patch_size=16, seed=0)
        for blur, noise in (("region", 0.0), ("region", 5.0), ("depth", 0.0))
    ]


def test_the_photographs_are_embedded():
    image = load([], 3)
    assert (image.shape, image.dtype) == ((3, 224, 224, 3), jnp.float32)
    assert 0 <= image.min() < image.max() <= 1


def test_reads_photographs_evenly_from_a_folder(tmp_path):
    for i in range(6):
        Image.new("RGB", (300, 250), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    red = np.asarray(load([str(tmp_path)], 3))[:, 0, 0, 0] * 255
    np.testing.assert_allclose(red, [0, 80, 160])
    with pytest.raises(ValueError, match="no such file"):
        load([str(tmp_path / "none.png")], 3)
    with pytest.raises(ValueError, match="count must be at least 1"):
        load([], 0)


def test_sharp_and_blurred_patches_are_separated(parts):
    for part in parts:
        assert 0.05 < part.sharp.mean() < 0.95
        assert len(part.sharp) == len(part.textured) == len(part.measured["laplacian"])
        assert 0 < part.textured.mean() <= 1
        assert set(part.measured) == set(MEASURES)
    for name in ("laplacian", "relative", "-sigma"):
        assert roc_auc_score(*pooled(name, parts[:1], textured=True)) > 0.75


def test_noise_is_harder(parts):
    areas = [roc_auc_score(*pooled("laplacian", [part])) for part in parts[:2]]
    assert areas[1] < areas[0]


def test_no_threshold_is_better_than_the_best():
    rng = np.random.default_rng(0)
    sharp = rng.random(80) < 0.4
    measured = np.round(rng.normal(size=80) + sharp, 1)  # rounded, so that some are equal
    threshold, accuracy = best_threshold(sharp, measured)
    tried = [balanced_accuracy_score(sharp, measured >= one) for one in measured]
    assert accuracy == pytest.approx(max(tried))
    assert balanced_accuracy_score(sharp, measured >= threshold) == pytest.approx(accuracy)


def test_the_tables_have_a_line_for_each_setting_and_measure(parts):
    lines = tables(parts).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert sum(line[:3] == ["region", "3", "5"] for line in cells) == 2
    assert sum(line[:2] == ["-sigma", "any"] for line in cells) == 2
    assert lines[-1].startswith("laplacian at 100, noise 5: accuracy 0.")


def test_the_command_reports_what_is_wrong(capsys):
    with pytest.raises(SystemExit, match="2"):
        focus_benchmark.main(["no/such/folder"])
    assert "no/such/folder: no such file" in capsys.readouterr().err
