"""Every public name is documented, and the site builds without a warning."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
ARGS = re.compile(r"^Args:\n((?:  .*\n|\n)*)", re.MULTILINE)
ARGUMENT = re.compile(r"^  (\*{0,2}\w[\w, ]*):", re.MULTILINE)
# What has so few arguments may say in a sentence what they are.
SELF_EXPLAINING = 2


def documented():
    """What docs/api.md names: modules with their public names, and single classes."""
    for path in DIRECTIVE.findall(PAGE.read_text()):
        try:
            yield from public(importlib.import_module(path))
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            yield path, getattr(importlib.import_module(module), name)


def public(module):
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and name != "main"
    ]
    for name in names:
        value = getattr(module, name)
        if not name.startswith("_") and not isinstance(value, (ModuleType, dict)):
            yield f"{module.__name__}.{name}", value


PUBLIC = dict(documented())
FUNCTIONS = {n: v for n, v in PUBLIC.items() if inspect.isroutine(inspect.unwrap(v))}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the built site."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("page", ["index.html", "examples/index.html", "launch/index.html"])
def test_the_site_has_its_pages(site, page):
    assert "bvit" in (site / page).read_text()


def test_the_site_has_every_public_name(site):
    page = (site / "api" / "index.html").read_text()
    anchors = re.findall(r'<h\d id="([^"]+)"', page)
    aliases = {value.__name__ for name, value in PUBLIC.items() if name.count(".") == 1}
    missing = {n for n in PUBLIC if n not in anchors and n.rpartition(".")[2] not in aliases}
    assert not missing
    assert len(set(anchors)) == len(anchors)  # once is enough


def test_the_site_fetches_nothing(site):
    for page in site.rglob("*.html"):
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', page.read_text())


def test_what_projects_plug_in_is_public():
    for name in ("gaussian_blur", "patch_mask", "models.create", "pretrained.load"):
        assert f"bvit.{name}" in PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name):
    docstring = PUBLIC[name].__doc__ or ""
    first = docstring.splitlines()[:1]
    # What dataclasses write for themselves is no documentation.
    assert first and first[0].endswith((".", ":")) and not first[0].startswith(f"{name}("), first


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_documents_its_arguments(name):
    docstring = inspect.getdoc(FUNCTIONS[name])
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters)
    if section := ARGS.search(docstring + "\n"):
        named = ARGUMENT.findall(section[1])
        assert [name.lstrip("*") for name in named] == parameters
    elif "Arguments are those of" not in docstring:
        assert len(parameters) <= SELF_EXPLAINING
