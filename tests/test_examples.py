"""The examples in the documentation are run as they stand there."""

import inspect
import re
from pathlib import Path

import pytest

import bvit

ROOT = Path(__file__).parents[1]
README, EXAMPLES = "README.md", "docs/examples.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall((ROOT / page).read_text())


def check_weights(name, path, **options):
    """Stands in for reading published weights, which no test downloads: only checks the call."""
    arguments = inspect.signature(LOAD).bind(name, path, **options)
    bvit.models.create(name, **arguments.arguments.get("overrides", {}))
    return {"params": {}}


LOAD = bvit.pretrained.load


def run(page, i, names):
    exec(compile(blocks(page)[i], f"{page}, example {i + 1}", "exec"), names)


def test_the_readmes_examples_run_one_after_another(monkeypatch):
    monkeypatch.setattr(bvit.pretrained, "load", check_weights)
    names = {}
    for i in range(len(blocks(README))):
        run(README, i, names)
    assert names["logits"].shape == (8, 10)


@pytest.mark.parametrize("i", range(len(blocks(EXAMPLES))))
def test_each_example_runs_by_itself(i):
    run(EXAMPLES, i, {"__name__": "example"})


def test_there_are_as_many_examples_as_titles():
    titles = re.findall("^## ", (ROOT / EXAMPLES).read_text(), re.MULTILINE)
    assert len(blocks(EXAMPLES)) == len(titles) >= 3
    assert blocks(README)


def test_a_call_that_no_longer_exists_would_fail():
    with pytest.raises(TypeError):
        check_weights("resnet50")
    with pytest.raises(ValueError, match="no option"):
        check_weights("vit_small_patch16_224", "x.npz", imag_size=384)
