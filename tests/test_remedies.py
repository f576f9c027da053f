"""What an error advises is tried: it works, in the same place, with what else was typed."""

import json
import re
import shutil

import numpy as np
import pytest
from jobs import Job
from test_main import arguments
from trained import CLASSES, run_directory, write_picture

from bvit import config as config_lib
from bvit import export, models, sharding
from bvit.checkpoint import CheckpointError, Checkpoints
from bvit.classify import check
from bvit.config import RESUME_MAY_CHANGE
from bvit.image.blur import gaussian_blur
from bvit.image.focus import patch_laplacian_variance
from bvit.run import Run, initial_variables
from bvit.tokens import parse

ADVISED = re.compile(r"\b([a-z]+\.[a-z_]+)=(\w+)")
SHORT = {"eval.policies": "keep", "eval.conditions": "sharp", "tokens.policy": "keep"}


@pytest.fixture
def run(tmp_path):
    """Runs a main job in one directory; returns (exit code, stderr)."""

    def run(**settings):
        job = Job(
            arguments(tmp_path / "run", **SHORT | settings),
            tmp_path / "out",
            cache=tmp_path / "cache",
        )
        code, _, err = job.wait()
        return code, err

    return run


def advised(err):
    """The settings that an error tells to type."""
    (line,) = [line for line in err.splitlines() if line.startswith("bvit: ")]
    found = dict(ADVISED.findall(line))
    assert found, line
    return found


@pytest.mark.slow  # tests/test_main.py has the error, and runs with what it advises
def test_a_run_with_an_unreadable_image_goes_on_as_its_error_advises(run, tmp_path):
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            for i in range(4):
                write_picture(tmp_path / "data" / split / name / f"{i}.png", seed=9 * label + i)
    (tmp_path / "data" / "train" / "dots" / "1.png").write_bytes(b"not an image")
    settings = {"data.name": "folder", "data.dir": tmp_path / "data"}
    code, err = run(**settings)
    assert code == 1
    code, err = run(**settings, **advised(err))
    assert code == 0, err
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_a_run_that_diverged_goes_on_as_its_error_advises(run, tmp_path):
    settings = {"optimizer.learning_rate": 1e30, "optimizer.warmup": 0.0}
    code, err = run(**settings)
    for _ in range(3):
        assert code == 1 and "not both finite" in err
        advice = advised(err)
        if "skip_nonfinite=7" in err:  # as many as are left of eight updates
            break
        code, err = run(**settings, **advice)
    code, err = run(**settings, **advice)
    assert code == 0, err


def test_what_is_advised_to_a_run_may_change_when_it_goes_on():
    for key in ("data.on_error", "train.skip_nonfinite", "data.num_workers", "mesh.data"):
        assert key in RESUME_MAY_CHANGE or key.partition(".")[0] in RESUME_MAY_CHANGE


def suggestions(message, name=""):
    """The numbers behind "use", as "use 8 or 16"."""
    found = re.search(rf"use (?:{name}=)?(?:at most )?(\d+)(?: or (\d+))?", message)
    assert found, message
    return [int(one) for one in found.groups() if one]


def each(error, name=""):
    numbers = suggestions(str(error.value), name)
    assert len(set(numbers)) == len(numbers)
    return numbers


@pytest.mark.parametrize("batch", [*range(-9, 8), *range(9, 16), 1001, 2**20 + 1])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_that_are_advised_can_be_shared(batch, accumulate):
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError) as error:
        sharding.check_batch(batch, mesh, name="train.batch_size", accumulate=accumulate)
    for size in each(error):
        sharding.check_batch(size, mesh, name="train.batch_size", accumulate=accumulate)


@pytest.mark.parametrize("size", [15, 1, 223, 225, 1000])
def test_patches_that_are_advised_fit(size):
    if size == 1:
        size = 150
    with pytest.raises(ValueError) as error:
        models.create("vit_tiny_patch16_224", patch_size=size)
    for one in each(error):
        models.create("vit_tiny_patch16_224", patch_size=one)
    with pytest.raises(ValueError) as error:
        patch_laplacian_variance(np.zeros((224, 224, 3), np.float32), patch_size=size)
    for one in each(error):
        patch_laplacian_variance(np.zeros((224, 224, 3), np.float32), patch_size=one)


@pytest.mark.parametrize("width", [1, 2, 100, 193])
def test_widths_that_are_advised_fit(width):
    with pytest.raises(ValueError) as error:
        models.create("vit_tiny_patch16_224", width=width)
    for one in each(error, "width"):
        models.create("vit_tiny_patch16_224", width=one)


def test_a_kernel_that_is_advised_fits():
    image = np.zeros((4, 9, 3), np.float32)
    with pytest.raises(ValueError) as error:
        gaussian_blur(image, 1.0, kernel_size=19)
    for size in each(error):
        gaussian_blur(image, 1.0, kernel_size=size)


@pytest.mark.parametrize("policy", ["merge:8", "drop:999", "cluster:500", "tome:99", "pool:0.5:3"])
def test_budgets_that_are_advised_are_followed(policy):
    model = models.create(
        "vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, num_heads=2
    )
    with pytest.raises(ValueError) as error:
        check(model, parse(policy))
    message = str(error.value)
    if "use " in message:
        for budget in suggestions(message):
            check(model, parse(f"{policy.partition(':')[0]}:{budget}"))
    else:
        (typed,) = re.findall(r"type (\w+:[\d.]+)|as (\w+:[\d.]+)", message) or [("keep",)]
        check(model, parse(next(filter(None, typed))))


def test_checkpoints_that_are_all_damaged_are_moved_away(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    state = {"params": {"kernel": np.ones(9)}, "step": 1}
    checkpoints.save(1, state)
    checkpoints.close()
    (folder / "1.seal").write_text(json.dumps({"gone": 0}))
    with pytest.raises(CheckpointError, match="move the folder away"):
        Checkpoints(folder).restore_state(state)
    folder.rename(tmp_path / "away")
    assert Checkpoints(folder).restore_state(state) is None


@pytest.mark.slow
def test_classes_without_names_can_be_written_by_hand(tmp_path):
    run = shutil.copytree(run_directory(), tmp_path / "run")
    (run / "classes.json").unlink()
    with pytest.raises(ValueError, match="a JSON list in the order of the labels"):
        _ = Run(run).class_names
    (run / "classes.json").write_text(json.dumps(CLASSES))
    assert Run(run).class_names == CLASSES


def test_a_head_of_other_classes_is_replaced():
    config = config_lib.load(run_directory() / "config.json").unlock()
    config.init_from, config.init_head = str(run_directory()), True
    others = ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="set init_head=False"):
        initial_variables(config, others)
    config.init_head = False
    kernel = initial_variables(config, others)["params"]["head"]["kernel"]
    assert kernel.shape[-1] == len(others)


def test_a_file_in_the_way_of_an_export_is_deleted_or_another_name_chosen(tmp_path):
    (tmp_path / "about.json").write_text("mine")
    command = [f"--run={run_directory()}", f"--to={tmp_path}"]
    with pytest.raises(SystemExit):
        export.main(command)
    export.main([command[0], f"--to={tmp_path / 'other'}"])
    (tmp_path / "about.json").unlink()
    export.main(command)


def test_the_mesh_that_is_left_free_takes_every_device():
    with pytest.raises(ValueError, match="leave mesh.data=-1"):
        sharding.make_mesh(data=3)
    sharding.make_mesh(data=-1)
