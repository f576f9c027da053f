"""Every public name is documented, and the page made of the docstrings is of today."""

import inspect

import pytest

from docs import make_api

PUBLIC = {name: value for _, _, names in make_api.sections() for name, value in names.items()}
FUNCTIONS = {n: v for n, v in PUBLIC.items() if inspect.isroutine(inspect.unwrap(v))}
# What has so few arguments may say in a sentence what they are.
SELF_EXPLAINING = 2


def test_what_projects_plug_in_is_public():
    for name in ("gaussian_blur", "patch_mask", "models.create", "models.tokens.plan"):
        assert f"bvit.{name}" in PUBLIC
    assert "bvit.models.pretrained.load" in PUBLIC
    assert "bvit.image.gaussian_blur" not in PUBLIC  # once is enough
    assert not any(part.startswith("_") for name in PUBLIC for part in name.split("."))


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if not isinstance(v, dict)])
def test_a_public_name_has_a_docstring(name):
    docstring = PUBLIC[name].__doc__ or ""
    first = docstring.splitlines()[:1]
    # What dataclasses write for themselves is no documentation.
    assert first and first[0].endswith((".", ":")) and not first[0].startswith(f"{name}("), first


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_documents_its_arguments(name):
    function = FUNCTIONS[name]
    parts = make_api.documented(function.__doc__)
    parameters = list(inspect.signature(function).parameters)
    if "Args" in parts:
        named = [line.split("`")[1] for line in parts["Args"].splitlines() if line.startswith("- ")]
        assert [name.lstrip("*") for name in named] == parameters
    elif "Arguments are those of" not in function.__doc__:
        assert len(parameters) <= SELF_EXPLAINING


def test_the_page_is_what_the_docstrings_say():
    assert make_api.PAGE.read_text() == make_api.render(), "run: python -m docs.make_api"


def test_docstrings_become_markdown():
    parts = make_api.documented(
        """Does it.

        Args:
          image: the picture,
            of any size.
          **options: the rest.

        Returns:
          The result.
        """
    )
    assert parts[""] == "Does it."
    assert parts["Args"] == "- `image`: the picture,\n    of any size.\n- `**options`: the rest."
    assert parts["Returns"] == "The result."
