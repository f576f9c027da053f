"""How commands print rows on standard output: as an aligned table, CSV or JSON lines."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from bvit.evaluation.rows import align

Row = dict[str, Any]
FORMATS = ("table", "csv", "jsonl")


@runtime_checkable
class Output(Protocol):
    """Prints rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Takes rows, and prints them now or at the end."""

    def close(self) -> None:
        """Prints what is left."""


def make_output(
    form: str,
    *,
    heading: Sequence[str],
    cells: Callable[[Row], list[str]],
    flatten: Callable[[Row], Row],
) -> Output:
    """An output of one of `FORMATS`.

    Args:
      form: of the rows.
      heading: of the table's columns.
      cells: row → its cells in the table.
      flatten: row → its columns as CSV, the same ones for each row.
    """
    if form == "table":
        return _Table(heading, cells)
    return _Csv(flatten) if form == "csv" else _JsonLines()


class _Table:
    """Prints all rows at the end, when the widths of the columns are known."""

    def __init__(self, heading: Sequence[str], cells: Callable[[Row], list[str]]) -> None:
        self._lines, self._cells = [list(heading)], cells

    def write(self, rows: Sequence[Row]) -> None:
        self._lines += map(self._cells, rows)

    def close(self) -> None:
        if len(self._lines) > 1:
            print(align(self._lines))


class _Csv:
    """Prints rows as they come, a heading before the first."""

    def __init__(self, flatten: Callable[[Row], Row]) -> None:
        self._flatten = flatten
        self._writer: csv.DictWriter[str] | None = None

    def write(self, rows: Sequence[Row]) -> None:
        for flat in map(self._flatten, rows):
            if self._writer is None:
                self._writer = csv.DictWriter(sys.stdout, list(flat), lineterminator="\n")
                self._writer.writeheader()
            self._writer.writerow(flat)
        sys.stdout.flush()

    def close(self) -> None:
        pass


class _JsonLines:
    """Prints each row as it comes, as a JSON object on a line."""

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        sys.stdout.flush()

    def close(self) -> None:
        pass
