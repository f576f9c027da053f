"""Compares runs and prints the paper's tables beside them: python -m bvit.report runs/*."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from bvit.evaluation import paper, report

FORMAT = flags.DEFINE_enum("format", "markdown", ["markdown", "csv"], "How tables are printed.")
TRADEOFF = flags.DEFINE_string(
    "tradeoff", None, "Where to draw accuracy against cost, one policy a line, of the first run."
)
SIGMA = flags.DEFINE_string(
    "sigma",
    None,
    "Where to draw accuracy against the sigma of the blur, one run and policy a line.",
)

EXIT_BAD_INPUT = 2


def main(argv: Sequence[str]) -> None:
    """Prints each run's rows, then every table of the paper."""
    if len(argv) < 2:
        raise app.UsageError("which runs? e.g. python -m bvit.report runs/*")
    try:
        runs = {path: read_results(path) for path in map(Path, argv[1:])}
        if SIGMA.value:
            report.draw_sigma(_labelled(runs)).savefig(SIGMA.value, dpi=150)
        if TRADEOFF.value:
            report.draw_tradeoff(next(iter(runs.values()))["rows"]).savefig(TRADEOFF.value, dpi=150)
    except ValueError as error:
        print(f"bvit: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    print(format_report(runs, FORMAT.value))


def read_results(run: Path) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
      ValueError: the folder is no run, or the run has not finished.
    """
    path = run / "results.json"
    if path.exists():
        return json.loads(path.read_text())
    if (run / "config.json").exists():
        raise ValueError(f"{run} is not finished: run its command again until it is.")
    raise ValueError(f"{run} is no run directory: it has no results.json.")


def format_report(runs: dict[Path, dict[str, Any]], form: str) -> str:
    """The whole report as text; `form` is "markdown" or "csv"."""
    sections = []
    for path, results in runs.items():
        sections.append((f"{path.name}: {_caption(results)}", report.table_lines(results["rows"])))
    for table in paper.TABLES:
        sections.append((table.title, paper.lines(table, list(runs.values()))))
    write = _csv if form == "csv" else _markdown
    return "\n\n".join(write(title, lines) for title, lines in sections)


def _caption(results: dict[str, Any]) -> str:
    config = results["config"]
    return (
        f"{config['model']['name']} on {config['data']['name']} at {config['data']['image_size']} "
        f"px, {paper.training_of(config)}, {results['step']} steps of "
        f"{config['train']['batch_size']}, seed {results['seed']}, n = {results['rows'][0]['n']}"
    )


def _labelled(runs: dict[Path, dict[str, Any]]) -> dict[str, list[report.Row]]:
    return {path.name: results["rows"] for path, results in runs.items()}


def _markdown(title: str, lines: list[list[str]]) -> str:
    return f"### {title}\n\n{report.align(lines)}"


def _csv(title: str, lines: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[title], *lines])
    return text.getvalue().rstrip()


if __name__ == "__main__":
    app.run(main)
