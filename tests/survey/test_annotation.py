"""What is drawn over a photograph, at its own size."""

import numpy as np
import pytest

from bvit.data.preprocessing import Preprocessing
from bvit.survey.annotation import DIMMED, SHARED, annotate

HEIGHT, WIDTH = 400, 600
GREY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
PREPROCESS = Preprocessing(32, 40, "bilinear")  # of 400 pixels, 320: from 40 and 140 on
WHERE = np.arange(16).reshape(4, 4)


def draw(where, pixels=GREY):
    return annotate(pixels, where, PREPROCESS.box(*pixels.shape[:2]), ["a label 93 %"])


def test_patches_without_a_token_are_dark_and_others_untouched():
    where = WHERE.copy()
    where[1, 2] = -1
    drawn = draw(where)
    assert drawn.shape == GREY.shape
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[40 + 80 : 40 + 160, 140 + 160 : 140 + 240] = True
    above_text = slice(0, 280)
    assert (drawn[inside] == int(DIMMED * 100)).all()
    frame = np.zeros((HEIGHT, WIDTH), bool)
    frame[40 - 1 : 42, 138:462] = frame[38:, 138:143] = frame[38:, 457:462] = True
    assert (drawn[above_text][~(inside | frame)[above_text]] == 100).all()
    assert (drawn[40, 200] == 255).all()  # what the model is given has a frame


def test_lines_run_around_patches_that_share_a_token_and_not_between_them():
    where = WHERE.copy()
    where[0, 1] = where[0, 0]
    drawn = draw(where)
    left, middle, right = 140 + 3, 140 + 80, 140 + 160
    assert (drawn[60, middle - 3 : middle + 4] == 100).all()
    assert (drawn[60, right - 3 : right + 4] == SHARED).all(-1).any()
    assert (drawn[40 + 80 - 3 : 40 + 80 + 4, left] == SHARED).all(-1).any()
    assert not (drawn[60, 140 + 240 - 3 : 140 + 240 + 4] == SHARED).all(-1).any()


@pytest.mark.parametrize("shape", [(400, 600), (600, 400), (3000, 2000)])
def test_text_stands_in_the_photograph_where_it_fits(shape):
    pixels = np.full((*shape, 3), 100, np.uint8)
    drawn = draw(WHERE, pixels)
    assert drawn.shape == pixels.shape
    changed = (drawn != pixels).any((1, 2))
    assert changed[-1] and not changed[: shape[0] // 20].any()


def test_a_photograph_that_is_too_small_for_text_is_not_covered():
    pixels = np.full((32, 40, 3), 100, np.uint8)
    drawn = draw(WHERE, pixels)
    assert drawn.shape[0] > 32 and drawn.shape[1] == 40
    assert (drawn[4:28, 10:30] == 100).all()
