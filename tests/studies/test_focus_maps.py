import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.studies import focus_maps

PATCH, SIDE = 8, 32


def images(count):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, SIDE, SIDE, 3)) / 255, jnp.float32)


def test_a_staged_image_is_sharp_blurred_and_flat_in_its_parts():
    image = images(1)
    seen = np.asarray(focus_maps.staged(image, 0.0, patch_size=PATCH))[0]
    half, quarter = SIDE // 2, SIDE // 4
    np.testing.assert_allclose(seen[:half, :half], image[0, :half, :half], atol=1e-6)
    np.testing.assert_allclose(seen[half:, :quarter], focus_maps.WALL, atol=1e-6)
    assert seen[:, half:].std() < 0.3 * np.asarray(image)[0, :, half:].std()
    noisy = np.asarray(focus_maps.staged(image, 5.0, patch_size=PATCH))[0]
    assert 3 < 255 * noisy[half:, :quarter].std() < 7


def test_the_command_draws_a_map_for_each_measure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(focus_maps, "load", lambda names, count: images(1))
    drawn = []
    draw = focus_maps.draw
    monkeypatch.setattr(
        focus_maps,
        "draw",
        lambda *args, **options: drawn.append(draw(*args, **options)) or drawn[0],
    )
    focus_maps.main([f"--to={tmp_path / 'maps.png'}", f"--patch_size={PATCH}"])
    assert "maps.png" in capsys.readouterr().out
    assert Image.open(tmp_path / "maps.png").width > 500
    rows = len(focus_maps.NOISES)
    assert len(drawn[0].axes) == rows * (1 + len(FOCUS_MEASURES))
    titles = [
        axes.get_title().partition(",")[0] for axes in drawn[0].axes[: 1 + len(FOCUS_MEASURES)]
    ]
    assert titles == ["image", *FOCUS_MEASURES]


def test_what_can_not_be_drawn_is_an_error(capsys):
    with pytest.raises(SystemExit):
        focus_maps.main(["--to=x.png", "/nowhere.png"])
    assert "no such file" in capsys.readouterr().err
