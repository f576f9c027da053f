import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.studies import score_maps

PATCH, SIDE = 8, 32


def pictures(count):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, SIDE, SIDE, 3)) / 255, jnp.float32)


def test_a_staged_picture_is_sharp_blurred_and_flat_in_its_parts():
    image = pictures(1)
    seen = np.asarray(score_maps.staged(image, 0.0, patch_size=PATCH))[0]
    half, quarter = SIDE // 2, SIDE // 4
    np.testing.assert_allclose(seen[:half, :half], image[0, :half, :half], atol=1e-6)
    np.testing.assert_allclose(seen[half:, :quarter], score_maps.WALL, atol=1e-6)
    assert seen[:, half:].std() < 0.3 * np.asarray(image)[0, :, half:].std()
    noisy = np.asarray(score_maps.staged(image, 5.0, patch_size=PATCH))[0]
    assert 3 < 255 * noisy[half:, :quarter].std() < 7


def test_the_command_draws_a_map_for_each_score(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score_maps, "load", lambda names, count: pictures(1))
    drawn = []
    draw = score_maps.draw
    monkeypatch.setattr(
        score_maps,
        "draw",
        lambda *args, **options: drawn.append(draw(*args, **options)) or drawn[0],
    )
    score_maps.main([f"--to={tmp_path / 'maps.png'}", f"--patch_size={PATCH}"])
    assert "maps.png" in capsys.readouterr().out
    assert Image.open(tmp_path / "maps.png").width > 500
    rows = len(score_maps.NOISES)
    assert len(drawn[0].axes) == rows * (1 + len(FOCUS_MEASURES))
    titles = [
        axes.get_title().partition(",")[0] for axes in drawn[0].axes[: 1 + len(FOCUS_MEASURES)]
    ]
    assert titles == ["picture", *FOCUS_MEASURES]


def test_what_can_not_be_drawn_is_told(capsys):
    with pytest.raises(SystemExit):
        score_maps.main(["--to=x.png", "/nowhere.png"])
    assert "no such file" in capsys.readouterr().err
