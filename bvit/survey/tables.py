"""How `python -m bvit.focus` prints what it found: as a table, CSV or JSON lines."""

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


class Table:
    """Prints all rows at the end, in aligned columns."""

    def __init__(self) -> None:
        """Starts with the names of the columns."""
        self._lines = [["file", "verdict", "sharp", "blurred", "flat", "sigma", "kind"]]

    def write(self, rows: Sequence[Row]) -> None:
        """Remembers rows."""
        for row in rows:
            kind = row["kind"]
            if row["motion_length"] is not None:
                kind = f"{kind} {row['motion_length']:.0f} px at {row['motion_angle']:.0f}°"
            if "moved_to" in row:
                kind += f", to {row['moved_to']}"
            shares = [_percent(row[name]) for name in ("sharp", "blurred", "flat")]
            sigma = "-" if row["sigma"] is None else f"{row['sigma']:.1f}"
            self._lines.append([row["file"], row["verdict"], *shares, sigma, kind])

    def close(self) -> None:
        """Prints them."""
        if len(self._lines) > 1:
            widths = [max(map(len, column)) for column in zip(*self._lines, strict=True)]
            for line in self._lines:
                cells = [cell.ljust(w) for cell, w in zip(line, widths, strict=True)]
                print("  ".join(cells).rstrip())


class Csv:
    """Prints rows as they come."""

    def __init__(self) -> None:
        """Prints no heading before the first row."""
        self._writer: csv.DictWriter | None = None

    def write(self, rows: Sequence[Row]) -> None:
        """Prints rows."""
        for row in rows:
            if self._writer is None:
                # Not every picture is moved, and a failed map leaves its place empty.
                names = [name for name in row if name not in ADDED] + list(ADDED)
                self._writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
                self._writer.writeheader()
            self._writer.writerow(row)
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to print."""


class JsonLines:
    """Prints each row as it comes, as a JSON object on a line."""

    def write(self, rows: Sequence[Row]) -> None:
        """Prints rows."""
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to print."""


# What some rows have and others not.
ADDED = ("map", "moved_to")
OUTPUTS = {"table": Table, "csv": Csv, "jsonl": JsonLines}


def _percent(share):
    return "-" if share is None else f"{share:.0%}"
