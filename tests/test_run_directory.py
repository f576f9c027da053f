import json
import multiprocessing
from pathlib import Path

import pytest

from bvit.run_directory import RunDirectory, whole, write_json

SETTINGS = {"seed": 1, "train": {"steps": 10}, "mesh": {"data": -1}}


def test_a_run_can_be_opened_again_but_not_by_another_config(tmp_path):
    RunDirectory(tmp_path / "run", SETTINGS).close()
    RunDirectory(tmp_path / "run", SETTINGS).close()
    with pytest.raises(ValueError, match="another config: train.steps was 10, now 20"):
        RunDirectory(tmp_path / "run", SETTINGS | {"train": {"steps": 20}})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == SETTINGS


def test_how_a_run_is_computed_may_change(tmp_path):
    RunDirectory(tmp_path, SETTINGS).close()
    RunDirectory(tmp_path, SETTINGS | {"mesh": {"data": 2}}).close()


def test_a_file_that_was_begun_leaves_the_one_before_it(tmp_path):
    write_json(tmp_path / "a.json", [1, 2])
    with pytest.raises(RuntimeError), whole(tmp_path / "a.json") as partial:
        partial.write_text("[3")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == [1, 2]
    write_json(tmp_path / "a.json", [4])
    assert json.loads((tmp_path / "a.json").read_text()) == [4]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(ValueError, match="holds other files"):
        RunDirectory(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _open(path: Path, answer) -> None:
    try:
        RunDirectory(path, SETTINGS)
        answer.put("opened")
    except ValueError as error:
        answer.put(str(error))


def test_two_processes_do_not_share_a_run(tmp_path):
    run = RunDirectory(tmp_path, SETTINGS)
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_open, args=(tmp_path, answer))
    process.start()
    assert "is working in" in answer.get(timeout=30)
    process.join()
    run.close()
    RunDirectory(tmp_path, SETTINGS).close()
