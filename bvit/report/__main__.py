"""Compares runs: python -m bvit.report runs/*

Runs that differ in nothing but their seed are one line, with the mean and its 95 % interval over
seeds; a single seed has its interval over pictures. Of the settings only those are shown in which
the runs differ. What follows are the paper's tables beside ours. --to=report.html writes one page
with all plots in it.

python -m bvit.report runs/merge* --against runs/keep* also compares the runs of each seed with the
baseline of that seed, on the same pictures.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.evaluation import imagenet_c
from bvit.evaluation import rows as report
from bvit.report import page, pairing, paper, plots, tables
from bvit.report.comparison import Group, group
from bvit.run import Run
from bvit.studies import deblurring_report

FORMATS = {".md": "markdown", ".csv": "csv", ".html": "html"}
TITLES = {
    "accuracy": "Accuracy by condition",
    "tradeoff": "Accuracy and what it costs",
    "sigma": "Accuracy and the σ of the blur",
    "curves": "Training",
}


def main(arguments: Sequence[str]) -> None:
    """Reports the runs that the arguments name."""
    options = _parser().parse_args(arguments)
    runs, failures = read_runs(options.runs)
    for reason in failures.values():
        print(f"bvit: {reason}", file=sys.stderr)
    if not runs:
        fail("there is no finished run to report.", EXIT_BAD_INPUT)
    groups = group(runs)
    try:
        paired = _paired(groups, options)
        _draw(groups, options)
        text = format_report(
            groups, failures, _format(options), matrix=options.matrix, paired=paired
        )
        if options.to:
            options.to.write_text(text + "\n")
        else:
            print(text)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)


def _parser() -> Parser:
    parser = Parser("python -m bvit.report", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        metavar="BASELINE",
        help="compare with these runs, alike but for their seed, on the same pictures",
    )
    parser.add_argument(
        "--against_policy",
        metavar="POLICY",
        help=f"of the baseline, which all policies are compared with; by default {pairing.KEEP}",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS.values()),
        help="of the tables; by default what the name of --to says, or markdown",
    )
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="write there (.md, .csv or .html), not to stdout"
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="only the top-1: a row for what differs in the runs, a column for each condition",
    )
    parser.add_argument("--sigma", metavar="FILE", help="draw accuracy against the blur's sigma")
    parser.add_argument("--tradeoff", metavar="FILE", help="draw accuracy against its cost")
    parser.add_argument(
        "--deblurring", metavar="FILE", help="draw accuracy against time, deblurred or not"
    )
    return parser


def _format(options: argparse.Namespace) -> str:
    by_name = FORMATS.get(options.to.suffix.lower()) if options.to else "markdown"
    if not (options.format or by_name):
        raise ValueError(f"--to must end in {', '.join(FORMATS)}, or --format be given.")
    return options.format or by_name


def _paired(groups: Sequence[Group], options: argparse.Namespace) -> list[page.Table]:
    if not options.against:
        if options.against_policy:
            raise ValueError("--against_policy is one of the baseline's: give --against too.")
        return []
    runs, failures = read_runs(options.against)
    if failures:
        raise ValueError(next(iter(failures.values())))
    baseline = pairing.baseline_of(runs)
    title = f"Paired with {', '.join(run.name for run in runs)}"
    return [(title, pairing.table(groups, baseline, options.against_policy or pairing.KEEP))]


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
    """Reads finished runs.

    Returns:
      The runs, each directory once; and why others were left out, by their names.
    """
    runs, failures = [], {}
    for path in {path.resolve(): path for path in paths}.values():
        try:
            runs.append(read_run(path))
        except (ValueError, OSError) as error:
            failures[path.name] = str(error)
    return runs, failures


def read_run(path: Path) -> Run:
    """Reads a finished run.

    Raises:
      ValueError: the folder is no run, the run has not finished, or its results are damaged.
    """
    run = Run(path)
    try:
        _sections(group([run]), matrix=False)  # fails if a part is missing
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / 'results.json'} is damaged ({error!r}).") from error
    return run


def _draw(groups: Sequence[Group], options: argparse.Namespace) -> None:
    rows = {one.label: one.rows for one in groups}
    for file, draw in ((options.sigma, plots.draw_sigma), (options.tradeoff, plots.draw_tradeoff)):
        if file:
            draw(rows).savefig(file, dpi=150)
    if options.deblurring:
        deblurring_report.draw(_results(groups)).savefig(options.deblurring, dpi=110)


def format_report(
    groups: Sequence[Group],
    failures: dict[str, str],
    form: str,
    *,
    matrix: bool = False,
    paired: Sequence[page.Table] = (),
) -> str:
    """The whole report as text.

    Args:
      groups: of `comparison.group`.
      failures: runs that were left out, and why.
      form: "markdown", "csv" or "html".
      matrix: leave out all but the matrix of runs and conditions, and `paired`.
      paired: tables of `pairing.table` with their titles.
    """
    sections = _sections(groups, matrix, paired)
    if failures:
        sections.append(("Left out", [["run", "why"], *map(list, failures.items())]))
    if form == "html":
        figures = {} if matrix else plots.draw(*_plotted(groups))
        return page.render(
            f"bvit: {sum(len(one.runs) for one in groups)} runs",
            sections,
            {TITLES[name]: figure for name, figure in figures.items()},
        )
    write = _csv if form == "csv" else _markdown
    return "\n\n".join(write(title, lines) for title, lines in sections)


def _plotted(groups: Sequence[Group]) -> tuple[plots.Rows, plots.Lines]:
    return (
        {one.label: one.rows for one in groups},
        {one.label: [run.metrics for run in one.runs] for one in groups},
    )


def _sections(
    groups: Sequence[Group], matrix: bool, paired: Sequence[page.Table] = ()
) -> list[page.Table]:
    title = "Top-1 in % with its 95 % interval"
    if matrix:
        return [(title, tables.matrix_lines(groups)), *paired]
    sections = [("Runs", tables.overview_lines(groups))]
    if len(groups) > 1:
        sections.append((title, tables.matrix_lines(groups)))
    sections += [("Results", tables.result_lines(groups)), *paired]
    for one in groups:
        if lines := imagenet_c.table_lines(one.rows):
            sections.append((f"{one.label or one.runs[0].name}: {imagenet_c.TITLE}", lines))
    sections += deblurring_report.tables(_results(groups))
    return sections + [(table.title, paper.lines(table, groups)) for table in paper.TABLES]


def _results(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    return {run.name: run.results for one in groups for run in one.runs}


def _markdown(title: str, lines: list[list[str]]) -> str:
    return f"### {title}\n\n{report.align(lines)}"


def _csv(title: str, lines: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[title], *lines])
    return text.getvalue().rstrip()


if __name__ == "__main__":
    main(sys.argv[1:])
