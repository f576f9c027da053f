"""What docs/adding.md tells people to write, applied to a copy of the package and used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding.md"
BLOCK = re.compile(r'^```(python|diff) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NEW_HUNK = "@@\n"

# Runs with the copy: a training step, an evaluation, the overlay, the operations and the export.
USE = """
import sys
from pathlib import Path

import jax
import numpy as np

import bvit
from bvit import export
from bvit import config as config_lib
from bvit.classify import classify, shown
from bvit.experiment import prepare
from bvit.interrupt import SignalWatch
from bvit.run import Run
from bvit.training.loop import train_and_evaluate
from configs import cnn_blur, vit_mask
from trained import write_picture

folder = Path(sys.argv[1])
for split in ("train", "val"):
    for label, name in enumerate(("checks", "dots", "stripes")):
        for i in range(4):
            write_picture(folder / "data" / split / name / f"{i}.png", seed=10 * label + i)


def run(name, config):
    with config.unlocked():
        config.data.name = "folder"
        config.data.dir = str(folder / "data")
        config.data.image_size = 32
        config.train.condition = "sharp+mosaic+region:mosaic"
        config.train.steps = 1
        config.train.batch_size = 16
        config.eval.batch_size = 8
        config.eval.every_steps = 0
        config.eval.conditions = "mosaic"
    experiment = prepare(config)
    found = Run.begin(folder / name, config_lib.to_dict(config))
    train_and_evaluate(experiment, found, SignalWatch())
    found.close()
    return Run(folder / name).load()


config = vit_mask.get_config("folder")
with config.unlocked():
    config.model.name = "vit_pico_patch8_32"
    config.model.depth = 2  # the config sets six
    config.tokens.score = "spread"
    config.tokens.policy = "center:0.5"
    config.eval.policies = "keep,drop:9,center:4,center:0.5@1"
vit = run("vit", config)

rows = {row["policy"]: row for row in vit.results["rows"]}
assert list(rows) == ["keep", "drop:9", "center:4", "center:0.5@1"], rows
assert rows["center:4"]["tokens"] == 4 and rows["center:4"]["gflops"] < rows["keep"]["gflops"]
assert rows["center:4"]["difference"] is not None
assert vit.policy("drop:9").score == "spread"

policy = vit.policy("center:4")
shape = vit.model.shape
keep = bvit.tokens.operations(bvit.tokens.Keep(), shape)
assert bvit.tokens.operations(policy, shape) < 0.5 * keep
pixels = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
normalisation = {"mean": tuple(vit.config.data.mean), "std": tuple(vit.config.data.std)}
where = shown(vit.model, vit.variables, pixels, policy, **normalisation)
middle = [[-1, -1, -1, -1], [-1, 0, 1, -1], [-1, 2, 3, -1], [-1, -1, -1, -1]]
np.testing.assert_array_equal(where, [middle, middle])
# What lies outside of the middle makes no difference.
changed = pixels.copy()
changed[:, :8] = 0
options = {"policy": "center:4", **normalisation}
np.testing.assert_array_equal(
    classify(vit.model, vit.variables, pixels, **options),
    classify(vit.model, vit.variables, changed, **options),
)
assert export.export(vit, policy, folder / "exported") < 1e-3

linear = run("linear", cnn_blur.get_config("model=linear,data=folder"))
assert [row["policy"] for row in linear.results["rows"]] == ["keep"]
try:
    bvit.tokens.parse("centre:4")
except ValueError as error:
    assert "did you mean 'center'" in str(error)
print("used")
"""


def blocks():
    return BLOCK.findall(PAGE.read_text())


def apply(diff, text):
    """Makes the changes of a diff without line numbers: each hunk must fit in one place."""
    for hunk in diff.split(NEW_HUNK):
        lines = hunk.splitlines()
        assert {line[:1] for line in lines} <= {"+", "-", " ", ""}, hunk
        old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
        assert text.count(old) == 1, f"this is {text.count(old)} times in the file:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the repository's code, changed as the page says."""
    root = tmp_path_factory.mktemp("changed")
    for name in ("bvit", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "trained.py", root)
    for kind, name, text in blocks():
        path = root / name
        if kind == "diff":
            path.write_text(apply(text, path.read_text()))
        else:
            assert not path.exists(), f"{name} is no new file"
            path.write_text(text)
    return root


def test_the_page_adds_one_of_each():
    assert [name for _, name, _ in blocks()] == [
        *("bvit/models/linear.py", "bvit/models/__init__.py"),
        *("bvit/image/conditions.py", "bvit/image/focus_measures.py"),
        *("bvit/tokens/center.py", "bvit/tokens/grammar.py"),
    ]


def test_what_the_page_adds_trains_evaluates_draws_counts_and_exports(changed, tmp_path):
    script = tmp_path / "use.py"
    script.write_text(USE)
    environment = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        cwd=changed,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("used\n")


def test_a_diff_that_no_longer_fits_is_an_error():
    assert apply(" a\n+b\n", "a\nc\n") == "a\nb\nc\n"
    with pytest.raises(AssertionError, match="0 times"):
        apply(" a\n-b\n", "a\nc\n")
