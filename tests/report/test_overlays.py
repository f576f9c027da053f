import numpy as np

from bvit.report.overlays import DIMMED, FRAME, LINES, RIGHT, WRONG, draw, sheet
from bvit.report.plots import pixels

EACH = np.arange(144).reshape(12, 12)  # every patch has a token of its own


def make_image():
    return np.random.default_rng(0).random((192, 192, 3)).astype(np.float32)


def test_patches_with_a_token_of_their_own_stay_as_they_are():
    image = make_image()
    np.testing.assert_array_equal(draw(image, EACH), image)


def test_patches_that_no_token_shows_are_dark_and_framed():
    image, where = make_image(), EACH.copy()
    where[2, 3] = -1
    drawn = draw(image, where)
    np.testing.assert_allclose(drawn[33:48, 49:64], DIMMED * image[33:48, 49:64], rtol=1e-6)
    np.testing.assert_allclose(drawn[32, 48:64], np.tile(FRAME, (16, 1)), rtol=1e-6)
    drawn[32:48, 48:64] = image[32:48, 48:64]
    np.testing.assert_array_equal(drawn, image)


def test_lines_run_around_patches_that_share_a_token():
    image, where = make_image(), EACH.copy()
    where[2:4, 4:6] = where[8, 4]  # they need not touch
    drawn = draw(image, where)
    on_line = np.isclose(drawn, LINES).all(-1)
    wanted = np.zeros((192, 192), bool)
    for top, bottom, left, right in ((32, 64, 64, 96), (128, 144, 64, 80)):
        wanted[[top, bottom], left:right] = wanted[top:bottom, [left, right]] = True
    np.testing.assert_array_equal(on_line, wanted)
    np.testing.assert_array_equal(drawn[~wanted], image[~wanted])


def test_small_images_are_enlarged():
    image = make_image()[:64, :64]
    drawn = draw(image, np.arange(64).reshape(8, 8))
    assert drawn.shape == (192, 192, 3)
    np.testing.assert_array_equal(drawn[1::3, 1::3], image)


def test_a_sheet_has_a_row_for_each_policy_with_its_labels():
    images = np.stack([make_image()] * 2)
    where = {"zero": np.stack([EACH - EACH - 1] * 2), "cluster:31": np.stack([EACH // 4] * 2)}
    answers = {"keep": ["cat", "dog"], "zero": ["cow", "dog"], "cluster:31": ["a" * 30, "dog"]}
    figure = sheet(images, where, answers, ["cat", "dog"])
    assert pixels(figure).std() > 10
    rows = np.array(figure.axes).reshape(3, 2)
    assert [row[0].get_ylabel() for row in rows] == ["keep", "zero", "cluster:31"]
    assert [cell.get_title() for cell in rows[0]] == ["cat", "dog"]
    texts = [[cell.xaxis.label for cell in row] for row in rows]
    assert [text[0].get_text() for text in texts] == ["cat", "cow", "a" * 19 + "…"]
    colors = [[text.get_color() for text in row] for row in texts]
    assert colors == [[RIGHT, RIGHT], [WRONG, RIGHT], [WRONG, RIGHT]]
    (alone,) = sheet(images[:1], {}, {}, ["cat"]).axes
    assert alone.get_ylabel() == "image"
