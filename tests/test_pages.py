"""The pages hold what they promise: links lead somewhere, commands and settings exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from bvit import models, tokens
from bvit.config import default_config, flatten, to_dict, words

ROOT = Path(__file__).parents[1]
README_LIMIT = 9000  # bytes: two screens
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "launch/README.md")
PAGES = (*WRITTEN, *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")))
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SETTING = re.compile(r"--config\.([a-z_.]+)")
MODULE = re.compile(r"python -m (bvit\.[a-z_.]+)")
FILE = re.compile(r"\b((?:configs|launch|bvit|tests)/[\w/.]+\.(?:py|sh|sbatch))\b")
POLICIES = re.compile(r"--config\.(?:tokens\.policy|eval\.policies)=(\S+)|--policy=(\S+)")
# In the commands of measurements that only the code of their commit can repeat.
RETIRED = {"model.plan_after", "model.merge_detail"}
# What docs/adding.md adds.
ADDED = "center"


def text(page):
    return (ROOT / page).read_text()


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    titles = HEADING.findall(FENCED.sub("", text(page)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links():
    for page in PAGES:
        for target in LINK.findall(FENCED.sub("", text(page))):
            if not target.startswith(("http://", "https://")):
                yield page, target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < README_LIMIT


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_a_link_leads_somewhere(page, target):
    name, _, anchor = target.partition("#")
    found = (ROOT / page).parent / name if name else ROOT / page
    assert found.exists(), f"{page} links to {target}"
    if anchor:
        # The site's page is the text of another file.
        wanted = "launch/README.md" if name == "launch.md" else found.resolve().relative_to(ROOT)
        assert anchor in anchors(wanted), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_site_links_to_its_own_pages(page):
    for linked, target in links():
        assert linked != page or not target.startswith("../"), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    for module in MODULE.findall(text(page)):
        assert importlib.util.find_spec(module.rstrip(".")), module
    for name in FILE.findall(text(page)):
        assert (ROOT / name).exists() or page == "docs/adding.md", name


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_settings_exist(page):
    known = set(flatten(to_dict(default_config())))
    for constructor in models.MODELS.values():
        known |= {f"model.{field}" for field in constructor.func.__dataclass_fields__}
    for setting in SETTING.findall(text(page)):
        setting = setting.rstrip(".")
        assert setting in known | {"key", *RETIRED}, f"{page} names --config.{setting}"


@pytest.mark.parametrize("page", PAGES)
def test_policies_are_read(page):
    for both in POLICIES.findall(text(page)):
        for policy in words("".join(both).rstrip("`).,;")):
            if policy.partition(":")[0] != ADDED:
                tokens.parse(policy)
