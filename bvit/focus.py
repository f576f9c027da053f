"""Says which images are blurred, where, and how much: python -m bvit.focus IMAGES...

IMAGES are files, folders, patterns such as 'shots/**/*.jpg', and - for a list of them on stdin.
No run and no weights are needed. Each image is measured at its full resolution, since scaling it
down hides blur. A line has

  verdict   sharp, blurred (nothing in it is in focus), or unknown (no detail to judge by)
  sharp     the probability that something in it is in focus
  blurred   the share of its area that is out of focus, among areas with detail
  flat      the share of its area without detail
  sigma     the blur of the middle patch in pixels of the original (a median); of what is blurred
            in JSON and CSV too, as sigma_blurred
  kind      focused; partly blurred; defocus; motion, with its length in pixels and its direction in
            degrees counterclockwise from the horizontal

Images that can't be read are listed at the end, with exit code 1; all others are done.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bvit.arguments import Parser, run_over_files
from bvit.data.decode import UnreadableImageError
from bvit.data.listing import STDIN, list_images
from bvit.evaluation.rows import NOTHING
from bvit.outputs import FOCUS_MAP, Drawings
from bvit.printing import FORMATS, Row, make_output
from bvit.survey.culling import Mover, draw
from bvit.survey.meter import Focus, FocusMeter
from bvit.survey.reading import read_pictures

HEADING = ("file", "verdict", "sharp", "blurred", "flat", "sigma", "kind")
# What some rows have and others not.
ADDED = ("map", "moved_to")


def main(arguments: Sequence[str]) -> None:
    """Measures the images that the arguments name."""
    options = _parser().parse_args(arguments)
    run_over_files(lambda: measure(options), undone="read, written or moved")


def _parser() -> Parser:
    parser = Parser("python -m bvit.focus", __doc__)
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the results")
    parser.add_argument(
        "--sort", action="store_true", help="the least sharp first; by default as they are listed"
    )
    parser.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help=f"write each image as NAME{FOCUS_MAP}: orange where it is blurred, grey where unknown",
    )
    parser.add_argument(
        "--move-blurred",
        type=Path,
        metavar="DIR",
        help="move blurred images there; a name that is taken gets a number",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what --move-blurred would move"
    )
    parser.add_argument("pictures", nargs="+", metavar="IMAGES", help="files, folders, ...")
    return parser


def measure(options: argparse.Namespace) -> tuple[dict[str, str], int]:
    """Prints what is blurred.

    Returns:
      What could not be read, written or moved, name → reason; and how many images were done.

    Raises:
      ValueError: the names stand for no image at all, or the flags do not fit.
    """
    if options.dry_run and options.move_blurred is None:
        raise ValueError("--dry-run only says what --move-blurred=DIR would move: give both.")
    paths, failures = list_images(options.pictures, sys.stdin)
    if not paths and not failures:
        source = "standard input" if STDIN in options.pictures else ", ".join(options.pictures)
        raise ValueError(f"{source} names no image; give files, folders or patterns.")
    maps = Drawings(options.maps, FOCUS_MAP, paths) if options.maps else None
    mover = Mover(options.move_blurred, options.dry_run) if options.move_blurred else None
    output = make_output(options.format, heading=HEADING, cells=make_cells, flatten=flatten)
    rows: list[Row] = []
    done = 0
    bar = tqdm(total=len(paths), unit=" images", leave=False, dynamic_ncols=True, smoothing=0.1)
    with bar, read_pictures(paths, FocusMeter()) as pictures:
        for path, pixels, found in pictures:
            if isinstance(pixels, UnreadableImageError):
                failures[str(path)] = str(pixels)
            else:
                row = make_row(path, found)
                try:
                    if maps:
                        row["map"] = str(maps.save(path, draw(pixels, found.probability)))
                    if mover and row["verdict"] == "blurred":
                        row["moved_to"] = str(mover.move(path))
                except OSError as error:
                    failures[str(path)] = f"{error.strerror}: {error.filename}"
                if options.sort:
                    rows.append(row)
                else:
                    with bar.external_write_mode(file=sys.stdout):
                        output.write([row])
                done += 1
            bar.update()
    output.write(sorted(rows, key=_sharpness))
    output.close()
    return failures, done


def _sharpness(row: Row) -> float:
    """Images without detail come last."""
    return 2.0 if row["sharp"] is None else row["sharp"]


def make_row(path: Path, found: Focus) -> Row:
    """Plain values, as the output formats print them; None where nothing was found."""

    def rounded(x: float | None, digits: int) -> float | None:
        return None if x is None else round(float(x), digits)

    return {
        "file": str(path),
        "width": found.width,
        "height": found.height,
        "verdict": found.verdict,
        "sharp": rounded(found.sharp, 4),
        "blurred": rounded(found.blurred, 4),
        "flat": rounded(found.flat, 4),
        "sigma": rounded(found.sigma, 2),
        "sigma_blurred": rounded(found.sigma_blurred, 2),
        "kind": found.kind,
        "motion_length": rounded(found.motion_length, 1),
        "motion_angle": rounded(found.motion_angle, 0),
        "motion_confidence": rounded(found.motion_confidence, 2),
    }


def make_cells(row: Row) -> list[str]:
    """What a row of the table shows."""
    kind = row["kind"]
    if row["motion_length"] is not None:
        kind = f"{kind} {row['motion_length']:.0f} px at {row['motion_angle']:.0f}°"
    if "moved_to" in row:
        kind += f", to {row['moved_to']}"
    shares = [
        NOTHING if row[name] is None else f"{row[name]:.0%}"
        for name in ("sharp", "blurred", "flat")
    ]
    sigma = NOTHING if row["sigma"] is None else f"{row['sigma']:.1f}"
    return [row["file"], row["verdict"], *shares, sigma, kind]


def flatten(row: Row) -> Row:
    """A row with the columns that not every row has: not every image is moved."""
    return {key: row[key] for key in row if key not in ADDED} | {key: row.get(key) for key in ADDED}


if __name__ == "__main__":
    main(sys.argv[1:])
