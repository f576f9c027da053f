"""A wheel built from the tree works where it and its dependencies are all that is installed."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from test_examples import README, ROOT, blocks

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
# What needs more than the dependencies of `import bvit` is not among the modules it loads. (Some of
# it is installed all the same, because Flax has Optax and Orbax among its own dependencies.)
IMPORTS = """
import sys, flax.linen, jax, jaxtyping
before = set(sys.modules)
import bvit, bvit.image, bvit.models, bvit.tokens, bvit.models.vit
bvit.pretrained
print(bvit.__file__)
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def run(*command, **options):
    done = subprocess.run([*command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with nothing but bvit's wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "bvit", folder / "tree" / "bvit")  # so that no build/ is left here
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", f"-w{folder}", str(folder / "tree"))
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv")
    interpreter = folder / "venv" / "bin" / "python"
    run(*PIP, "--python", str(interpreter), "install", "--no-compile", str(wheel))
    yield interpreter
    shutil.rmtree(folder)  # 700 MB, and pytest would keep three of them


def isolated(python, code):
    return run(str(python), "-I", "-c", code, cwd=Path(python).parent)


def test_importing_needs_nothing_else(python):
    places, loaded = isolated(python, IMPORTS).splitlines()
    assert "venv" in places
    assert set(loaded.split()) <= {"bvit", "flax", "jax", "jaxtyping", "numpy", "wadler_lindig"}


def test_the_readmes_snippet_runs(python):
    isolated(python, blocks(README)[0] + "\nassert logits.shape == (8, 1000)")
