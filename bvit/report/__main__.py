"""Compares runs: python -m bvit.report runs/*

Runs that differ only in their seed share a line, with the mean and its 95 % interval over seeds;
the interval of a single seed is over images. Only the settings are shown in which the runs differ.
--to=report.html writes one page with all plots in it, --to=report.csv a line for each run,
condition and policy, --figures=DIR the plots for a paper. --paper adds the paper's tables, with
runs on ImageNet beside its numbers.

python -m bvit.report runs/merge* --against runs/keep* also compares the runs of each seed with the
baseline of that seed, on the same images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bvit import outputs
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.evaluation import imagenet_c
from bvit.evaluation.answers import Cell
from bvit.evaluation.rows import Row
from bvit.report import formats, pairing, paper, plots, tables
from bvit.report.comparison import Group, group
from bvit.run import Run

FORMATS = {".md": "markdown", ".csv": "csv", ".html": "html"}
# A figure for a paper, and one for slides.
FIGURES = (".pdf", ".png")
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
    rows = {one.label: one.rows for one in groups}
    try:
        form = _format(options)
        for path in filter(None, (options.to, options.sigma, options.tradeoff)):
            outputs.check(path)
        if options.figures:
            options.figures.mkdir(parents=True, exist_ok=True)
        baseline = _baseline(options)
        policy = options.against_policy or pairing.KEEP
        sections = _sections(groups, matrix=options.matrix)
        if baseline:
            title = f"Paired with {', '.join(run.name for run in baseline.runs)}"
            sections.append((title, pairing.table(groups, baseline, policy)))
        if options.classes:
            title = f"accuracy of each class under {options.classes}"
            for run in (run for one in groups for run in one.runs):
                lines = tables.class_lines(run, options.classes)
                sections.append((f"{run.name}: {title}", lines))
        if options.paper:
            ours = [one for one in groups if paper.is_imagenet(one.runs[0])]
            sections += [(table.title, paper.lines(table, ours)) for table in paper.TABLES]
        if failures:
            sections.append(("Left out", [["run", "why"], *map(list, failures.items())]))
        figures = {}
        if options.sigma:
            figures[options.sigma] = plots.draw_sigma(rows)
        if options.tradeoff:
            figures[options.tradeoff] = plots.draw_tradeoff(rows)
        on_page = form == "html" and not options.matrix
        drawn = _figures(groups) if options.figures or on_page else {}
        if options.figures:
            for name, figure in drawn.items():
                figures |= {options.figures / f"{name}{suffix}": figure for suffix in FIGURES}
        for path, figure in figures.items():
            outputs.write_figure(path, figure, dpi=plots.DOTS_PER_INCH)
        if form == "html":
            shown = {TITLES[name]: drawn[name] for name in drawn} if on_page else {}
            text = formats.as_html(f"bvit: {len(runs)} runs", sections, shown)
        elif form == "csv":
            text = formats.as_csv(tables.tidy_lines(groups, _by_run(groups, baseline, policy)))
        else:
            text = formats.as_markdown(sections)
        if options.to:
            outputs.write(options.to, formats.marked(text, form).encode())
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
        help="compare with these runs, which differ only in their seed, on the same images",
    )
    parser.add_argument(
        "--against_policy",
        metavar="POLICY",
        help=f"the baseline's policy that all are compared with; {pairing.KEEP} by default",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS.values()),
        help="of the tables; by default that of --to's name, or markdown",
    )
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="write there (.md, .csv or .html), not to stdout"
    )
    parser.add_argument(
        "--classes",
        nargs="?",
        const=pairing.KEEP,
        metavar="POLICY",
        help=f"add the accuracy of each class under a policy; {pairing.KEEP} by default",
    )
    parser.add_argument(
        "--paper", action="store_true", help="add the paper's tables beside runs on ImageNet"
    )
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="DIR",
        help="write each plot there, as a vector PDF for a paper and as PNG",
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="only top-1, with a row for each setting and a column for each condition",
    )
    parser.add_argument(
        "--sigma", type=Path, metavar="FILE", help="draw accuracy against the blur's sigma"
    )
    parser.add_argument(
        "--tradeoff", type=Path, metavar="FILE", help="draw accuracy against its cost"
    )
    return parser


def _format(options: argparse.Namespace) -> str:
    by_name = FORMATS.get(options.to.suffix.lower()) if options.to else "markdown"
    if not (options.format or by_name):
        raise ValueError(f"--to must end in {', '.join(FORMATS)}, or --format be given.")
    return options.format or by_name


def _baseline(options: argparse.Namespace) -> Group | None:
    if not options.against:
        if options.against_policy:
            raise ValueError("--against_policy is one of the baseline's: give --against too.")
        return None
    runs, failures = read_runs(options.against)
    if failures:
        raise ValueError(next(iter(failures.values())))
    return pairing.baseline_of(runs)


def _by_run(
    groups: Sequence[Group], baseline: Group | None, policy: str
) -> dict[Run, dict[Cell, Row]]:
    """The differences of each run from the baseline of its seed."""
    if baseline is None:
        return {}
    return {
        run: {
            (row["condition"], row["policy"]): row
            for row in pairing.rows(Group({}, (run,), {}, ""), baseline, policy)
        }
        for one in groups
        for run in one.runs
    }


def _figures(groups: Sequence[Group]) -> dict[str, Figure]:
    return plots.draw(
        {one.label: one.rows for one in groups},
        {one.label: [run.metrics for run in one.runs] for one in groups},
        {one.label: [run.evaluations for run in one.runs] for one in groups},
    )


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
    _ = run.results  # raises if there are none
    try:
        _sections(group([run]), matrix=False)  # fails if a part is missing or odd
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path / 'results.json'} is damaged ({error!r}).") from error
    return run


def _sections(groups: Sequence[Group], matrix: bool) -> list[formats.Table]:
    title = "Top-1 in % with its 95 % interval"
    if matrix:
        return [(title, tables.matrix_lines(groups))]
    sections = [("Runs", tables.overview_lines(groups))]
    if len(groups) > 1:
        sections.append((title, tables.matrix_lines(groups)))
    sections.append(("Results", tables.result_lines(groups)))
    if lines := tables.calibration_lines(groups):
        sections.append(("Cross-entropy and expected calibration error (15 bins)", lines))
    for one in groups:
        if lines := imagenet_c.table_lines(one.rows):
            sections.append((f"{one.label or one.runs[0].name}: {imagenet_c.TITLE}", lines))
    return sections


if __name__ == "__main__":
    main(sys.argv[1:])
