import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from trained import CLASSES, SIZE, run_directory

from bvit import export
from bvit.classify import classify
from bvit.run import Run

# As the documentation says, in a process that has no bvit.
READER = """
import sys
sys.modules["bvit"] = None
import jax, numpy, safetensors.numpy
folder = sys.argv[1]
program = jax.export.deserialize(open(f"{folder}/model.stablehlo", "rb").read())
parameters = safetensors.numpy.load_file(f"{folder}/parameters.safetensors")
for n in (1, 5):
    pixels = numpy.load(f"{folder}/pixels.npy")[:n]
    numpy.save(f"{folder}/logits{n}.npy", program.call(parameters, pixels))
assert {"cpu", "cuda", "tpu"} <= set(program.platforms)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export.main([f"--run={run_directory()}", f"--to={folder}"])
    return folder


def test_what_is_written_gives_the_models_logits_without_bvit(exported):
    pixels = np.random.default_rng(1).random((5, SIZE, SIZE, 3), np.float32)
    pixels[:, :16] = 0.5  # blurry, to be merged
    np.save(exported / "pixels.npy", pixels)
    subprocess.run([sys.executable, "-c", READER, exported], check=True, cwd=exported)
    run = Run(run_directory()).load()
    mean, std = tuple(run.config.data.mean), tuple(run.config.data.std)
    # The policy that the run trained with.
    want = classify(run.model, run.variables, pixels, "merge:7", mean=mean, std=std)
    for n in (1, 5):
        got = np.load(exported / f"logits{n}.npy")
        np.testing.assert_allclose(got, want[:n], rtol=1e-4, atol=1e-5)


def test_parameters_are_the_runs_by_name(exported):
    parameters = load_file(exported / "parameters.safetensors")
    variables = Run(run_directory()).load().variables
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    assert len(parameters) == len(leaves)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_array_equal(parameters[name], leaf)


def test_it_says_what_it_is(exported):
    about = json.loads((exported / "about.json").read_text())
    assert about["classes"] == list(CLASSES)
    assert about["policy"] == "merge:7" and about["step"] == 2
    assert f"{SIZE}, {SIZE}, 3" in about["input"]


def test_other_logits_than_the_models_are_an_error(exported, tmp_path, monkeypatch):
    run = Run(run_directory()).load()
    monkeypatch.setattr(
        export, "save_file", lambda p, path: save_file({k: 1.1 * v for k, v in p.items()}, path)
    )
    with pytest.raises(export.ExportError, match="does not give the logits"):
        export.export(run, run.policy("keep"), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--to=x", "--policy=random:5"], "random"),
        (["--to=x", "--policy=merg:7"], "did you mean 'merge'?"),
        (["--ot=x"], "did you mean --to?"),
        ([], "--to"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys, arguments, word):
    with pytest.raises(SystemExit, match="2"):
        export.main([f"--run={run_directory()}", *arguments])
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("bvit: ") and word in err
