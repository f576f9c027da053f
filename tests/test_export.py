import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import test_examples
from published import NAME, add_pico, write_weights
from safetensors.numpy import load_file, save
from trained import CLASSES, SIZE, run_directory

from bvit import export, onnx_program
from bvit.classify import classify
from bvit.run import Run

MODE = 0o640  # of new files, by the umask

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
    umask = os.umask(0o666 & ~MODE)
    export.main([f"--run={run_directory()}", f"--to={folder}"])
    os.umask(umask)
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


def test_published_weights_are_exported_with_the_names_of_their_classes(tmp_path, monkeypatch):
    add_pico(monkeypatch)
    weights = write_weights(tmp_path / "weights.safetensors", num_classes=1000)
    folder = tmp_path / "exported"
    export.main([f"--weights={weights}", f"--model={NAME}", f"--to={folder}"])  # it tries them
    about = json.loads((folder / "about.json").read_text())
    assert about["classes"][0] == "tench" and about["model"] == NAME
    np.testing.assert_array_equal(
        load_file(folder / "parameters.safetensors")["params/head/bias"],
        load_file(weights)["params/head/bias"].astype(np.float32),
    )


def test_other_logits_than_the_models_are_an_error(exported, tmp_path, monkeypatch):
    run = Run(run_directory()).load()
    monkeypatch.setattr(
        export, "save", lambda parameters: save({k: 1.1 * v for k, v in parameters.items()})
    )
    with pytest.raises(export.ExportError, match="does not give the logits"):
        export.export(run, run.policy("keep"), tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def with_onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with_onnx")
    export.main([f"--run={run_directory()}", f"--to={folder}", "--onnx"])
    return folder


def test_the_guides_example_runs_the_onnx_program(with_onnx):
    run = Run(run_directory()).load()
    mean, std = tuple(run.config.data.mean), tuple(run.config.data.std)
    (example,) = [b for b in test_examples.blocks(test_examples.GUIDE) if "onnxruntime" in b]
    pixels = np.random.default_rng(1).random((5, SIZE, SIZE, 3), np.float32)
    want = classify(run.model, run.variables, pixels, "merge:7", mean=mean, std=std)
    for n in (1, 5):
        names = {"pixels": pixels[:n]}
        exec(example.replace("DIR", str(with_onnx)), names)
        np.testing.assert_allclose(names["logits"], want[:n], rtol=1e-4, atol=1e-5)


def test_a_later_export_leaves_no_stale_onnx_program(with_onnx, tmp_path):
    folder = shutil.copytree(with_onnx, tmp_path / "model")
    export.main([f"--run={run_directory()}", f"--to={folder}", "--policy=keep"])
    assert not (folder / "model.onnx").exists()


def test_an_onnx_program_of_others_is_kept(with_onnx, tmp_path, capsys):
    folder = shutil.copytree(with_onnx, tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"mine")
    command = [f"--run={run_directory()}", f"--to={folder}", "--policy=keep"]
    with pytest.raises(SystemExit, match="2"):
        export.main([*command, "--onnx"])
    assert "model.onnx exists" in capsys.readouterr().err
    export.main(command)
    assert (folder / "model.onnx").read_bytes() == b"mine"


def test_an_onnx_program_of_a_model_in_half_precision_computes_in_float32(tmp_path):
    run = Run(run_directory()).load()
    whole, run.model = run.model, run.model.clone(dtype=jnp.bfloat16)
    pixels = np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)
    export.export(run, run.policy("keep"), tmp_path, onnx=True)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"pixels": pixels})
    mean, std = tuple(run.config.data.mean), tuple(run.config.data.std)
    want = classify(whole, run.variables, pixels, "keep", mean=mean, std=std)
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


def test_an_onnx_program_with_other_logits_is_an_error(tmp_path, monkeypatch):
    run = Run(run_directory()).load()
    convert = onnx_program.convert

    def wrong(function, parameters, shape):
        return convert(function, {k: 1.1 * v for k, v in parameters.items()}, shape)

    monkeypatch.setattr(onnx_program, "convert", wrong)
    with pytest.raises(export.ExportError, match="model.onnx does not give the logits"):
        export.export(run, run.policy("keep"), tmp_path, onnx=True)
    monkeypatch.setattr(onnx_program, "convert", convert)
    monkeypatch.delitem(onnx_program.OPERATORS, "dot_general")
    with pytest.raises(export.ExportError, match="'dot_general'.*Leave out --onnx"):
        export.export(run, run.policy("keep"), tmp_path, onnx=True)
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match="2"):
        export.main(["--run=nowhere", "--to=x", "--onnx"])
    assert "pip install onnxruntime" in capsys.readouterr().err


def test_a_second_export_replaces_the_first_and_nothing_else(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "model")
    export.main([f"--run={run_directory()}", f"--to={folder}", "--policy=keep"])
    assert json.loads((folder / "about.json").read_text())["policy"] == "keep"
    mine = b"weights of mine"
    for name in ("parameters.safetensors", "model.stablehlo", "about.json"):
        other = shutil.copytree(exported, tmp_path / name)
        (other / name).write_bytes(mine)
        before = {path.name: path.read_bytes() for path in other.iterdir()}
        with pytest.raises(SystemExit, match="2"):
            export.main([f"--run={run_directory()}", f"--to={other}"])
        assert "exists" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_the_files_can_be_read_as_the_umask_says(exported):
    names = ("model.stablehlo", "parameters.safetensors", "about.json")
    assert {oct((exported / name).stat().st_mode & 0o777) for name in names} == {oct(MODE)}


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
