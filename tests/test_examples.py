"""The examples in the documentation are run as they stand there."""

import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import bvit

ROOT = Path(__file__).parents[1]
README, GUIDE, POLICIES, EXAMPLES = (
    "README.md",
    "docs/guide.md",
    "docs/policies.md",
    "docs/examples.md",
)
TUTORIAL = "docs/tutorial.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# policy, tokens of the first, the mean and the last block, share of the operations
COST = re.compile(
    r"^\| `([a-z]+(?::0\.5)?)` \|.*\| (\d+), (\d+), (\d+) \| ([\d.]+) \|$", re.MULTILINE
)


def blocks(page):
    return BLOCK.findall((ROOT / page).read_text())


def check_weights(name, path, **options):
    """Stands in for published weights, which no test downloads: checks the call, gives zeros."""
    arguments = inspect.signature(LOAD).bind(name, path, **options)
    model = bvit.models.create(name, **arguments.arguments.get("overrides", {}))
    size = getattr(model, "image_size", 224)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


LOAD = bvit.pretrained.load


def run(page, i, names):
    exec(compile(blocks(page)[i], f"{page}, example {i + 1}", "exec"), names)


def test_the_readmes_examples_run_one_after_another(monkeypatch):
    monkeypatch.setattr(bvit.pretrained, "load", check_weights)
    names = {}
    for i in range(len(blocks(README))):
        run(README, i, names)
    assert names["sharp"].shape == (8, 14, 14)
    assert names["logits"].shape == (8, 1000)


def test_the_readme_uses_what_other_projects_want_first():
    example = "".join(blocks(README))
    for name in (
        *("gaussian_blur", "random_gaussian_blur", "region_blur", "patch_mask", "mask_patches"),
        *("models.create", "pretrained.load", "classify"),
    ):
        assert f"bvit.{name}(" in example


def test_the_guide_loads_weights_as_they_are_loaded(monkeypatch):
    monkeypatch.setattr(bvit.pretrained, "load", check_weights)
    names = {"bvit": bvit}
    run(GUIDE, 1, names)
    kernel = names["variables"]["params"]["pos_embed"]
    assert kernel.shape[1] == 1 + (384 // 16) ** 2
    for i in range(len(blocks(GUIDE))):  # the others need a run
        compile(blocks(GUIDE)[i], f"{GUIDE}, example {i + 1}", "exec")


def test_the_counts_of_a_policy_are_those_that_the_page_prints():
    names = {"bvit": bvit}
    run(POLICIES, 0, names)
    policy, shape = names["policy"], names["shape"]
    printed = re.findall(r"# (.*)$", blocks(POLICIES)[0], re.MULTILINE)[1:]
    assert str(policy.counts(shape)).startswith(printed[0].removesuffix(" …)"))
    assert f"{bvit.tokens.operations(policy, shape):.3e}".replace("e+09", "e9") == printed[1]


def test_the_costs_of_the_policies_are_those_of_their_table():
    shape = bvit.models.create("vit_tiny_patch16_224").shape
    rows = COST.findall((ROOT / POLICIES).read_text())
    assert {name.split(":")[0] for name, *_ in rows} == set(bvit.tokens.POLICIES)
    keep = bvit.tokens.operations(bvit.tokens.Keep(), shape)
    for name, first, mean, last, share in rows:
        policy = bvit.tokens.parse(name)
        counts = policy.counts(shape)
        found = counts[0], round(bvit.tokens.mean_tokens(policy, shape)), counts[-2]
        assert found == (int(first), int(mean), int(last)), name
        assert f"{bvit.tokens.operations(policy, shape) / keep:.2f}" == f"{float(share):.2f}"


@pytest.mark.parametrize("i", range(len(blocks(EXAMPLES))))
def test_each_example_runs_by_itself(i):
    run(EXAMPLES, i, {"__name__": "example"})


def test_there_are_as_many_examples_as_titles():
    titles = re.findall("^## ", (ROOT / EXAMPLES).read_text(), re.MULTILINE)
    assert len(blocks(EXAMPLES)) == len(titles) >= 3


def test_a_call_that_no_longer_exists_would_fail():
    with pytest.raises(TypeError):
        check_weights("resnet50")
    with pytest.raises(ValueError, match="no option"):
        check_weights("vit_small_patch16_224", "x.npz", imag_size=384)


def test_the_tutorial_runs_from_top_to_bottom():
    notebook = json.loads((ROOT / TUTORIAL).read_text())
    names = {"__name__": "tutorial"}
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{TUTORIAL}, cell {i + 1}", "exec"), names)
    assert names["logits"].shape == (2, 1000)
    assert len(names["drawn"]) == 3
    names["plt"].close("all")
