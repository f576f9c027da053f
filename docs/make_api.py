"""Writes docs/api.md from the docstrings: python -m docs.make_api"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent / "api.md"
# Public modules, and with them what is public in those that these name in __all__.
MODULES = (
    "bvit",
    "bvit.image",
    "bvit.image.focus_measures",
    "bvit.image.conditions",
    "bvit.models",
    "bvit.tokens.inputs",
    "bvit.run",
    "bvit.export",
)
TITLE = """# The functions of bvit

Written from the docstrings by `python -m docs.make_api`; change those, not this page. Pixels are
float RGB in [0, 1] with any leading batch axes; a key comes first, then arrays, then options.
"""
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):$")
ENTRY = re.compile(r"^ {2}(\*{0,2}\w[\w, ]*): ?(.*)$")


def sections() -> Iterator[tuple[str, ModuleType, dict[str, Any]]]:
    """Each public module with its path and those public names in it that none before had."""
    waiting, seen = list(MODULES), set()
    while waiting:
        path = waiting.pop(0)
        module = importlib.import_module(path)
        if id(module) in seen:
            continue
        seen.add(id(module))
        names = {}
        for name, value in _public(module).items():
            if isinstance(value, ModuleType):
                waiting.append(value.__name__)
            elif id(value) not in seen:
                seen.add(id(value))
                names[f"{path}.{name}"] = value
        yield path, module, names


def _public(module: ModuleType) -> dict[str, Any]:
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "main"  # of a command
        and getattr(value, "__module__", None) == module.__name__
    }


def signature(function: Any) -> str:
    """The arguments and the result of a function as its source has them."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    (node,) = ast.parse(source).body
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){result}".replace("'", '"')


def documented(docstring: str) -> dict[str, str]:
    """A docstring as Markdown text by section; "" is what comes before the sections."""
    lines: dict[str, list[str]] = {"": []}
    section = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if found := SECTION.match(line):
            section = found[1]
            lines[section] = []
        elif section and (entry := ENTRY.match(line)):
            lines[section].append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines[section].append(line[2:] if section == "Returns" else line)
    return {name: "\n".join(part).strip("\n") for name, part in lines.items()}


def render() -> str:
    """The page."""
    parts = [TITLE]
    for path, module, names in sections():
        if not names:
            continue
        parts.append(f"## {path}\n\n{inspect.cleandoc(module.__doc__)}\n")
        for name, value in names.items():
            parts.append(f"### {name}\n")
            if isinstance(value, dict):
                parts.append(f"A table of {', '.join(f'`{key}`' for key in value)}.\n")
                continue
            if inspect.isroutine(inspect.unwrap(value)):
                parts.append(f"```python\n{name.rpartition('.')[2]}{signature(value)}\n```\n")
            for section, text in documented(value.__doc__).items():
                parts.append((f"**{section}**\n\n" if section else "") + f"{text}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
