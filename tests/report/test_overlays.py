import numpy as np

from bvit.report.overlays import DIMMED, FRAMES, LINES, draw_clusters, draw_levels, sheet
from bvit.report.plots import pixels


def make_image():
    return np.random.default_rng(0).random((192, 192, 3)).astype(np.float32)


def test_patches_at_full_resolution_stay_as_they_are():
    image = make_image()
    np.testing.assert_array_equal(draw_levels(image, np.zeros((12, 12), int)), image)


def test_patches_that_are_left_out_are_dark_and_framed():
    image, level = make_image(), np.zeros((12, 12), int)
    level[2, 3] = -1
    drawn = draw_levels(image, level)
    np.testing.assert_allclose(drawn[33:48, 49:64], DIMMED * image[33:48, 49:64], rtol=1e-6)
    np.testing.assert_allclose(drawn[32, 48:64], np.tile(FRAMES[-1], (16, 1)), rtol=1e-6)
    drawn[32:48, 48:64] = image[32:48, 48:64]
    np.testing.assert_array_equal(drawn, image)


def test_merged_blocks_show_half_of_the_resolution_in_one_frame():
    image, level = make_image(), np.zeros((12, 12), int)
    level[2:4, 4:6] = 1
    drawn = draw_levels(image, level)
    np.testing.assert_allclose(drawn[40, 72], image[40:42, 72:74].mean((0, 1)), rtol=1e-5)
    framed = np.isclose(drawn[32:64, 64:96], FRAMES[1]).all(-1)
    assert framed.sum() == 32 + 31  # the upper and the left edge of the block, nothing inside


def test_lines_run_between_clusters():
    image, cluster = make_image()[:64, :64], np.zeros((2, 2), int)
    cluster[0, 1] = 1
    drawn = draw_clusters(image, cluster)
    on_line = np.isclose(drawn, LINES).all(-1)
    wanted = np.zeros((192, 192), bool)
    wanted[:96, 96] = wanted[96, 96:] = True
    np.testing.assert_array_equal(on_line, wanted)
    np.testing.assert_array_equal(drawn[1::3, 1::3], image)


def test_small_pictures_are_enlarged():
    image = make_image()[:64, :64]
    drawn = draw_levels(image, np.zeros((8, 8), int))
    assert drawn.shape == (192, 192, 3)
    np.testing.assert_array_equal(drawn[1::3, 1::3], image)


def test_a_sheet_has_a_row_for_each_policy():
    images = np.stack([make_image()] * 2)
    level = np.zeros((2, 12, 12), int)
    one = pixels(sheet(images, {"zero": level - 1}))
    two = pixels(sheet(images, {"zero": level - 1, "merge:31": level + 1}))
    assert one.dtype == np.uint8 and one.shape[1:] == two.shape[1:]
    assert two.shape[0] > one.shape[0]
    assert pixels(sheet(images, {})).std() > 10
