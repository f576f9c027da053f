import numpy as np
import pytest

from bvit import answers
from bvit.evaluation.evaluator import EvalResult
from bvit.tokens import parse

KEEP, MERGE = parse("keep"), parse("merge:72")
IMAGENET = 50_000, 1000  # pictures, classes


def outcomes(index, ranks):
    return [EvalResult(name, policy, index, rank) for (name, policy), rank in ranks.items()]


def test_ranks_come_back_under_condition_and_policy(tmp_path):
    index = np.array([0, 2, 70_000])  # one could not be read, one needs more than two bytes
    ranks = {
        ("region:motion", KEEP): np.array([0, 9, 3], np.int32),
        ("region:motion", MERGE): np.array([1, 1000, 256], np.int32),
        ("gaussian:1.5", MERGE): np.array([255, 0, 0], np.int32),
    }
    answers.write(tmp_path, outcomes(index, ranks))
    found = answers.read(tmp_path)
    np.testing.assert_array_equal(found.index, index)
    assert list(found.ranks) == [(name, policy.label) for name, policy in ranks]
    for (name, policy), rank in ranks.items():
        np.testing.assert_array_equal(found.ranks[name, policy.label], rank)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.npz"]


def test_imagenet_takes_at_most_two_bytes_for_each_answer(tmp_path):
    pictures, classes = IMAGENET
    rng = np.random.default_rng(0)
    ranks = {
        (name, policy): rng.integers(0, classes + 1, pictures)  # the least that can be compressed
        for name in ("sharp", "blur")
        for policy in (KEEP, MERGE)
    }
    answers.write(tmp_path, outcomes(np.arange(pictures), ranks))
    assert (tmp_path / "answers.npz").stat().st_size < 2 * pictures * (1 + len(ranks))
    few = outcomes(np.arange(pictures), {("sharp", KEEP): rng.integers(0, 256, pictures)})
    answers.write(tmp_path, few)
    assert (tmp_path / "answers.npz").stat().st_size < (1 + 2) * pictures


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    index = np.arange(3)
    answers.write(tmp_path, outcomes(index, {("sharp", KEEP): np.array([1, 2, 3])}))

    def stop(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        answers.write(tmp_path, outcomes(index, {("sharp", KEEP): np.array([4, 5, 6])}))
    np.testing.assert_array_equal(answers.read(tmp_path).ranks["sharp", "keep"], [1, 2, 3])


def test_a_run_without_answers_is_told_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match=f"evaluate it again.*--config.init_from={tmp_path} "):
        answers.read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "text", "no index", "lengths"])
def test_damaged_answers_are_told(tmp_path, damage):
    path = tmp_path / "answers.npz"
    answers.write(tmp_path, outcomes(np.arange(9), {("sharp", KEEP): np.arange(9)}))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "overwritten":
        content = path.read_bytes()
        path.write_bytes(content[:60] + b"\xff" * 20 + content[80:])
    elif damage == "text":
        path.write_text("no zip")
    else:
        arrays = {"index": np.arange(4)} if damage == "lengths" else {}
        np.savez_compressed(path, **arrays, **{"sharp|keep": np.arange(9)})
    with pytest.raises(ValueError, match=r"answers\.npz is damaged"):
        answers.read(tmp_path)
