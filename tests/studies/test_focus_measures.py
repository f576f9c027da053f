"""The benchmark of focus scores, on a few pictures."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bvit.studies import focus_measures as focus_benchmark
from bvit.studies.focus_measures import RANKED, load, pooled, score_patches, table


@pytest.fixture(scope="module")
def parts():
    image = load([], 3)[:, 40:136, 40:152]
    return [
        score_patches(image, blur=blur, sigma=3.0, noise=noise, patch_size=16, seed=0)
        for blur, noise in (("region", 0.0), ("region", 5.0), ("depth", 0.0))
    ]


def test_the_photographs_are_embedded():
    image = load([], 3)
    assert (image.shape, image.dtype) == ((3, 224, 224, 3), jnp.float32)
    assert 0 <= image.min() < image.max() <= 1


def test_reads_pictures_evenly_from_a_folder(tmp_path):
    for i in range(6):
        Image.new("RGB", (300, 250), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    red = np.asarray(load([str(tmp_path)], 3))[:, 0, 0, 0] * 255
    np.testing.assert_allclose(red, [0, 80, 160])
    with pytest.raises(ValueError, match="no such file"):
        load([str(tmp_path / "none.png")], 3)
    with pytest.raises(ValueError, match="count must be at least 1"):
        load([], 0)


def test_both_kinds_are_told_from_each_other(parts):
    for part in parts:
        assert 0.05 < part.sharp.mean() < 0.95
        assert len(part.sharp) == len(part.textured) == len(part.scores["laplacian"])
        assert 0 < part.textured.mean() <= 1
        assert set(part.scores) == set(RANKED)
    for name in ("laplacian", "relative", "-sigma"):
        assert pooled(name, parts[:1], textured=True).auc > 0.75


def test_noise_is_harder(parts):
    areas = [pooled("laplacian", [part]).auc for part in parts[:2]]
    assert areas[1] < areas[0]


def test_the_table_has_a_line_for_each_setting_and_score(parts):
    lines = table(parts).splitlines()
    assert sum(line.startswith("| region | 3 | 5 |") for line in lines) == 2
    assert sum(line.startswith("| -sigma | any |") for line in lines) == 2
    assert lines[-1].startswith("laplacian at 100, noise 5: accuracy 0.")


def test_the_command_tells_what_is_wrong(capsys):
    with pytest.raises(SystemExit, match="2"):
        focus_benchmark.main(["no/such/folder"])
    assert "no/such/folder: no such file" in capsys.readouterr().err
