import cv2
import numpy as np
import pytest
from scipy import optimize
from skimage import data

from bvit.studies import focus
from bvit.studies.focus_fit import area_under_curve, regression
from bvit.studies.focus_measure import best_threshold, f_measure, map_scores
from bvit.studies.focus_truth import blur_masks, compared, focus_pairs, motion_kernel, patch_values

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:224, :224])


def test_of_two_photographs_the_one_with_more_detail_is_sharp():
    blurred = cv2.GaussianBlur(PHOTOGRAPH, (0, 0), 3)
    half = np.arange(224)[:, None] < 112
    first, second = (np.where(half, *x) for x in ((PHOTOGRAPH, blurred), (blurred, PHOTOGRAPH)))
    near, far = compared("pair", "scene", first, second)
    left = np.arange(14) < 7
    inner = np.ones(14, bool)
    inner[6:8] = False  # the border itself shows in both
    clear = near.clear & inner
    assert clear.sum() > 60
    # Beside a strong edge, its blur shows where the sharp picture is flat.
    assert (near.sharp == left)[clear].mean() > 0.95
    np.testing.assert_array_equal(far.sharp, ~near.sharp)


def test_folders_are_read(tmp_path):
    for name, pixels in (("x_A", PHOTOGRAPH), ("x_B", cv2.GaussianBlur(PHOTOGRAPH, (0, 0), 2))):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), pixels[:217])
    near, far = focus_pairs(tmp_path)
    assert near.pixels.shape == (208, 224, 3) == far.pixels.shape
    assert near.sharp[near.clear].mean() > 0.95 and far.sharp[far.clear].mean() < 0.05
    cv2.imwrite(str(tmp_path / "y.jpg"), PHOTOGRAPH)
    mask = np.zeros((224, 224), np.uint8)
    mask[:112] = 255
    cv2.imwrite(str(tmp_path / "y_sharp.png"), mask)
    (drawn,) = blur_masks(tmp_path)
    assert drawn.sharp[:7].all() and not drawn.sharp[7:].any()
    (tmp_path / "none").mkdir()
    for read in (focus_pairs, blur_masks):
        with pytest.raises(ValueError, match="it needs files NAME"):
            read(tmp_path / "none")


def test_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, sharp = rng.integers(0, 9, 80).astype(float), rng.random(80) < 0.4
    above = score[sharp][:, None] - score[~sharp]
    share = ((above > 0) + 0.5 * (above == 0)).mean()
    np.testing.assert_allclose(area_under_curve(score, sharp), share)


def test_best_threshold_is_that_of_a_search():
    rng = np.random.default_rng(1)
    sharp = rng.random(60) < 0.5
    score = np.round(sharp + rng.normal(0, 1, 60), 1)
    threshold, right = best_threshold(score, sharp)
    accuracies = [((score >= t) == sharp).mean() for t in score]
    np.testing.assert_allclose(right, max(accuracies))
    np.testing.assert_allclose(((score >= threshold) == sharp).mean(), right)


def test_regression_finds_the_minimum():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 3))
    y = (x @ [1.0, -2.0, 0.5] + rng.normal(size=200) > 0.3).astype(float)
    counts = rng.uniform(0.5, 2, 200)

    def loss(w):
        z = x @ w[:3] + w[3]
        return np.sum(counts * (np.logaddexp(0, z) - y * z)) + 1.5 * np.sum(w[:3] ** 2)

    expected = optimize.minimize(loss, np.zeros(4), tol=1e-9).x
    np.testing.assert_allclose(regression(x, y, counts), expected, atol=1e-3)


def test_f_measure_of_known_maps():
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    assert f_measure(truth, truth) == 1
    assert f_measure(~truth, truth) == 0
    # Precision 1/2, recall 1.
    np.testing.assert_allclose(f_measure(np.ones((4, 4), bool), truth), 1.3 * 0.5 / (0.15 + 1))
    assert map_scores(truth.astype(float), truth) == [1, 1, 1, 0]


def test_motion_has_its_length_and_direction():
    kernel = motion_kernel(20.0, 30.0)
    np.testing.assert_allclose(kernel.sum(), 1)
    rows, columns = np.mgrid[-32:33, -32:33]
    xx, yy, xy = (
        (kernel * a * b).sum() for a, b in ((columns, columns), (rows, rows), (columns, -rows))
    )
    np.testing.assert_allclose(np.degrees(0.5 * np.arctan2(2 * xy, xx - yy)), 30, atol=1)
    np.testing.assert_allclose(np.sqrt(12 * (xx + yy)), 20, rtol=0.05)


def test_patches_are_cut_in_order():
    x = np.arange(32 * 48).reshape(32, 48)
    patches = patch_values(x)
    assert patches.shape == (2, 3, 256)
    np.testing.assert_array_equal(patches[1, 2].reshape(16, 16), x[16:, 32:])


def test_what_is_missing_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        focus.main(["measure", "--pairs=x"])
    assert stop.value.code == 2
    assert "measure needs --masks, --sharp" in capsys.readouterr().err
