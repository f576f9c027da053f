"""What `import bvit` gives, and what it costs."""

import ast
import subprocess
import sys
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


@pytest.mark.parametrize("path", sorted((PACKAGE / "image").glob("*.py")), ids=lambda p: p.name)
def test_image_functions_know_nothing_of_models_or_configs(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    outside = {
        name
        for name in imported
        if name.startswith(("flax", "ml_collections"))
        or (name.startswith("bvit") and not name.startswith("bvit.image"))
    }
    assert not outside
