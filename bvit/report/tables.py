"""Groups of runs as tables of text, header first."""

from collections.abc import Iterable, Sequence

from bvit.evaluation.rows import COLUMNS, Row, format_cell, format_value
from bvit.report.comparison import Group, caption

NOT_RUN = "not run"


def overview_lines(groups: Sequence[Group]) -> list[list[str]]:
    """A line for each group: its runs, and all settings that differ."""
    keys = list(groups[0].settings)
    lines = [["runs", *keys, "seeds", "parameters", "what"]]
    for one in groups:
        results = one.runs[0].results
        seeds = dict.fromkeys(str(run.results["seed"]) for run in one.runs)
        lines.append(
            [
                ", ".join(run.name for run in one.runs),
                *(format_value(one.settings[key]) for key in keys),
                ", ".join(seeds),
                f"{results['parameters']:,}",
                caption(one.runs[0]),
            ]
        )
    return lines


def result_lines(groups: Sequence[Group]) -> list[list[str]]:
    """A line for each condition, policy and group, in this order, with all that was measured."""
    lines = [[*groups[0].shown, *(title for _, title, _ in COLUMNS), "interval over"]]
    for condition in _in_order(row["condition"] for one in groups for row in one.rows):
        for policy in _in_order(row["policy"] for one in groups for row in one.rows):
            for one in groups:
                row = _find(one, condition, policy)
                if row is not None:
                    cells = [format_cell(row, key, form) for key, _, form in COLUMNS]
                    lines.append([*one.shown.values(), *cells, over([row])])
    return lines


def matrix_lines(groups: Sequence[Group]) -> list[list[str]]:
    """A line for each group and policy, a column for each condition: top-1 with its interval."""
    conditions = _in_order(row["condition"] for one in groups for row in one.rows)
    policies = _in_order(row["policy"] for one in groups for row in one.rows)
    lines = [[*groups[0].shown, "policy", *conditions, "interval over"]]
    for one in groups:
        for policy in policies:
            found = [_find(one, condition, policy) for condition in conditions]
            if any(found):
                cells = map(cell, found)
                lines.append([*one.shown.values(), policy, *cells, over(filter(None, found))])
    return lines


def cell(row: Row | None, metric: str = "top1") -> str:
    """An accuracy in %, with its interval where it has one."""
    if row is None:
        return NOT_RUN
    text = f"{100 * row[metric]:.2f}"
    if metric != "top1":
        return text
    low, high = (100 * bound for bound in row["ci95"])
    return f"{text} [{low:.1f}, {high:.1f}]"


def over(rows: Iterable[Row]) -> str:
    """What the intervals of rows are over."""
    return " or ".join(
        _in_order(f"{r['seeds']} seeds" if r["seeds"] > 1 else f"{r['n']} images" for r in rows)
    )


def _find(one: Group, condition: str, policy: str) -> Row | None:
    return next((r for r in one.rows if (r["condition"], r["policy"]) == (condition, policy)), None)


def _in_order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
