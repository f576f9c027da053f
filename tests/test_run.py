import json
import multiprocessing
from pathlib import Path

import jax
import numpy as np
import pytest
from trained import CLASSES, SIZE, run_directory

from bvit import config as config_lib
from bvit import data, optimizer, sharding
from bvit.evaluation.evaluator import EvalResult, Evaluator
from bvit.outputs import whole
from bvit.run import Run, ancestors, initial_variables, write_json
from bvit.tokens import parse

CONFIG = {"seed": 1, "train": {"steps": 10}, "mesh": {"data": -1}}
KEEP, MERGE = parse("keep"), parse("merge:72")
IMAGENET = 50_000, 1000  # images, classes


def test_a_run_can_be_opened_again_but_not_by_another_config(tmp_path):
    Run.begin(tmp_path / "run", CONFIG).close()
    Run.begin(tmp_path / "run", CONFIG).close()
    with pytest.raises(ValueError, match="another config: train.steps was 10, now 20"):
        Run.begin(tmp_path / "run", CONFIG | {"train": {"steps": 20}})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG


def test_how_a_run_is_computed_may_change(tmp_path):
    Run.begin(tmp_path, CONFIG).close()
    Run.begin(tmp_path, CONFIG | {"mesh": {"data": 2}}).close()


def test_an_interrupted_write_leaves_the_file_before_it(tmp_path):
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
        Run.begin(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _begin(path: Path, answer) -> None:
    try:
        Run.begin(path, CONFIG)
        answer.put("opened")
    except ValueError as error:
        answer.put(str(error))


def test_two_processes_do_not_share_a_run(tmp_path):
    run = Run.begin(tmp_path, CONFIG)
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_begin, args=(tmp_path, answer))
    process.start()
    assert "is working in" in answer.get(timeout=30)
    process.join()
    run.close()
    Run.begin(tmp_path, CONFIG).close()


def outcomes(index, ranks):
    label = index % 7
    return [
        EvalResult(name, policy, index, rank, label, np.where(rank, 7, label), index, index)
        for (name, policy), rank in ranks.items()
    ]


def test_ranks_come_back_under_condition_and_policy(tmp_path):
    index = np.array([0, 2, 70_000])  # one could not be read, one needs more than two bytes
    ranks = {
        ("region:motion", KEEP): np.array([0, 9, 3], np.int32),
        ("region:motion", MERGE): np.array([1, 1000, 256], np.int32),
        ("gaussian:1.5", MERGE): np.array([255, 0, 0], np.int32),
    }
    Run(tmp_path).write_answers(outcomes(index, ranks))
    found = Run(tmp_path).answers
    np.testing.assert_array_equal(found.index, index)
    assert list(found.ranks) == [(name, policy.label) for name, policy in ranks]
    for (name, policy), rank in ranks.items():
        np.testing.assert_array_equal(found.ranks[name, policy.label], rank)
        right = found.predicted[name, policy.label] == found.label
        np.testing.assert_array_equal(right, rank == 0)
    np.testing.assert_array_equal(found.label, index % 7)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.npz"]


def test_imagenet_takes_few_bytes_for_each_answer(tmp_path):
    images, classes = IMAGENET
    rng = np.random.default_rng(0)
    ranks = {
        (name, policy): rng.integers(0, classes + 1, images)  # the least that can be compressed
        for name in ("sharp", "blur")
        for policy in (KEEP, MERGE)
    }
    Run(tmp_path).write_answers(outcomes(np.arange(images), ranks))
    assert (tmp_path / "answers.npz").stat().st_size < images * (2 + 3 * len(ranks))
    few = outcomes(np.arange(images), {("sharp", KEEP): rng.integers(0, 256, images)})
    Run(tmp_path).write_answers(few)
    assert (tmp_path / "answers.npz").stat().st_size < (2 + 2) * images


def test_answers_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run, index = Run(tmp_path), np.arange(3)
    run.write_answers(outcomes(index, {("sharp", KEEP): np.array([1, 2, 3])}))

    def stop(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        run.write_answers(outcomes(index, {("sharp", KEEP): np.array([4, 5, 6])}))
    np.testing.assert_array_equal(run.answers.ranks["sharp", "keep"], [1, 2, 3])


def test_the_error_for_a_run_without_answers_says_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match=f"evaluate it again.*--config.init_from={tmp_path} "):
        _ = Run(tmp_path).answers


@pytest.mark.parametrize("damage", ["cut", "overwritten", "text", "no index", "lengths"])
def test_damaged_answers_are_an_error(tmp_path, damage):
    path = tmp_path / "answers.npz"
    Run(tmp_path).write_answers(outcomes(np.arange(9), {("sharp", KEEP): np.arange(9)}))
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
        _ = Run(tmp_path).answers


def test_the_runs_before_one_are_read_as_far_as_they_go(tmp_path):
    chain = {"tuned": "base", "base": "w.npz", "round": "round"}
    for name, before in chain.items():
        config = {"seed": 3, "init_from": str(tmp_path / before)}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))

    def found(name):
        return [config["init_from"] for config in ancestors(str(tmp_path / name))]

    assert found("tuned") == [str(tmp_path / "base"), str(tmp_path / "w.npz")]
    assert found("round") == [str(tmp_path / "round")]
    assert found("w.npz") == ancestors("") == []


def random_batches():
    rng = np.random.default_rng(0)
    yield {
        "image": rng.integers(0, 256, (8, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, len(CLASSES), 8).astype(np.int32),
        "index": np.arange(8, dtype=np.int32),
        "mask": np.ones(8, bool),
    }


def evaluate(run, mesh):
    """The rank of the true class under `keep`, and under the policy that the run trained with."""
    evaluator = Evaluator(
        run.model,
        random_batches,
        conditions=("sharp",),
        policies=(run.policy("keep"), run.policy()),
        num_images=8,
        image_size=SIZE,
        mean=tuple(run.config.data.mean),
        std=tuple(run.config.data.std),
        seed=0,
        mesh=mesh,
    )
    return [result.rank for result in evaluator(run.variables)]


def test_a_run_that_was_trained_in_shards_is_used_on_other_devices(monkeypatch):
    """Its parameters lie in eight shards on disk; neither its data nor its optimizer is built."""

    path = run_directory()

    def no(*args, **kwargs):
        raise AssertionError("not needed to use a model")

    monkeypatch.setattr(optimizer, "make_optimizer", no)
    monkeypatch.setattr("bvit.experiment.make_optimizer", no)
    monkeypatch.setattr(data, "open_source", no)
    mesh = sharding.make_mesh(fsdp=4, devices=jax.devices()[:4])
    one, four = Run(path).load(), Run(path).load(mesh)
    assert one.step == four.step == 2
    for leaf in jax.tree.leaves(one.variables):
        assert leaf.devices() == {jax.devices()[0]}
    kernel = four.variables["params"]["patch_embed"]["kernel"]
    assert len({shard.device for shard in kernel.addressable_shards}) == 4
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    jax.tree.map(np.testing.assert_array_equal, four.variables, one.variables)
    alone = sharding.make_mesh(devices=jax.devices()[:1])
    np.testing.assert_array_equal(evaluate(four, mesh), evaluate(one, alone))


@pytest.fixture
def config():
    found = config_lib.load(run_directory() / "config.json")
    found.init_from = str(run_directory())
    found.init_head = True
    return found


def test_a_run_begins_with_the_variables_of_another(config):
    variables = initial_variables(config, CLASSES)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    jax.tree.map(np.testing.assert_array_equal, variables, Run(run_directory()).load().variables)


def test_a_new_head_for_other_classes_is_drawn_when_asked_for(config):
    with pytest.raises(ValueError, match=r"has 3 \(checks, dots, stripes, …\), the data 2 \(a, b"):
        initial_variables(config, ("a", "b"))
    config.init_head = False
    variables = initial_variables(config, ("a", "b"))
    trained = Run(run_directory()).load().variables["params"]
    assert variables["params"]["head"]["kernel"].shape == (32, 2)
    np.testing.assert_array_equal(
        variables["params"]["patch_embed"]["kernel"], trained["patch_embed"]["kernel"]
    )


def test_another_model_or_folder_is_an_error(config, tmp_path):
    config.model.depth = 2
    with pytest.raises(ValueError, match="not those of vit_tiny"):
        initial_variables(config, CLASSES)
    config.init_from = str(tmp_path)
    with pytest.raises(ValueError, match="is no run directory: it has no config.json"):
        initial_variables(config, CLASSES)


@pytest.mark.parametrize("mesh", [False, True])
def test_a_run_that_only_evaluated_has_the_weights_it_started_from(config, tmp_path, mesh):
    config.train.steps = 0
    write_json(tmp_path / "config.json", config_lib.to_dict(config))
    write_json(tmp_path / "classes.json", CLASSES)
    mesh = sharding.make_mesh(fsdp=8) if mesh else None
    run = Run(tmp_path).load(mesh)
    assert run.step == 0
    kernel = run.variables["params"]["patch_embed"]["kernel"]
    assert len(kernel.sharding.device_set) == (8 if mesh else 1)
    jax.tree.map(
        np.testing.assert_array_equal, run.variables, Run(run_directory()).load().variables
    )


def test_results_of_older_runs_are_read_with_budgets_in_the_names_of_policies(tmp_path):
    rows = [{"policy": "keep", "budget": None}, {"policy": "drop", "budget": 8}]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert [row["policy"] for row in Run(tmp_path).results["rows"]] == ["keep", "drop:8"]


def test_a_run_that_ended_while_it_began_can_be_begun_again(tmp_path):
    for made in ([".lock"], [".lock", "figures"], [".lock", "figures", ".config.json.0.partial"]):
        path = tmp_path / str(len(made))
        path.mkdir()
        for name in made:
            (path / name).mkdir() if name == "figures" else (path / name).touch()
        Run.begin(path, CONFIG).close()
        assert json.loads((path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"hidden_size": 768}', b"\xff\xfe\x00"])
def test_a_config_of_something_else_is_left_alone_and_told_in_a_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        Run.begin(tmp_path, CONFIG)
    assert "config.json" in str(error.value) or "another config" in str(error.value)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_run_from_before_a_setting_goes_on_with_its_default(tmp_path):
    config = config_lib.to_dict(config_lib.default_config())
    old = config | {"data": {k: v for k, v in config["data"].items() if k != "exclude"}}
    Run.begin(tmp_path, old).close()
    Run.begin(tmp_path, config).close()
