"""What `import bvit` gives, and what it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bvit

PACKAGE = Path(bvit.__file__).parent

IMPORTS = """
import sys, jax, flax, jaxtyping
before = {name.partition(".")[0] for name in sys.modules}
import bvit
print(*sorted({name.partition(".")[0] for name in sys.modules} - before))
"""


def test_importing_loads_nothing_beyond_jax_and_flax():
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    # wadler_lindig prints types for jaxtyping, which loads it when it first has to.
    assert set(run.stdout.split()) <= {"bvit", "wadler_lindig"}


@pytest.mark.parametrize("name", bvit.__all__)
def test_public_names_exist(name):
    assert getattr(bvit, name) is not None


def test_public_functions_of_modules_exist():
    assert callable(bvit.models.create)
    assert callable(bvit.tokens.parse)
    assert callable(bvit.pretrained.convert)
    assert callable(bvit.pretrained.load)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'bvit' has no attribute 'gausian_blur'"):
        _ = bvit.gausian_blur


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert bvit.__version__ == project["version"]
