"""Says which pictures are blurred, where, and how much: python -m bvit.focus PICTURES...

PICTURES are files, folders, patterns such as 'shots/**/*.jpg', and - for a list of them on stdin.
No run and no weights are needed. Each picture is measured at its full resolution, since scaling it
down hides blur. A line has

  verdict   sharp, blurred (nothing in it is in focus), or unknown (no detail to judge by)
  sharp     the probability that something in it is in focus
  blurred   the share of its area that is out of focus, of what tells; flat: the share that does not
  sigma     the blur of the middle patch in pixels of the original (a median); of what is blurred
            in JSON and CSV too, as sigma_blurred
  kind      focused; partly blurred; defocus; motion, with its length in pixels and its direction in
            degrees counterclockwise from the horizontal

Pictures that can't be read are listed at the end, with exit code 1; all others are done.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bvit import interrupt
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.data.decode import UnreadableImageError
from bvit.data.listing import STDIN, list_images
from bvit.survey.culling import MAP_SUFFIX, Maps, Mover
from bvit.survey.meter import Focus, FocusMeter
from bvit.survey.reading import read_pictures
from bvit.survey.tables import OUTPUTS

EXIT_UNREADABLE = 1
SHOWN_FAILURES = 20
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> None:
    """Measures the pictures that the arguments name."""
    options = _parser().parse_args(arguments)
    try:
        if options.dry_run and options.move_blurred is None:
            raise ValueError("--dry-run only says what --move-blurred=DIR would move: give both.")
        failures = measure(options)
    except KeyboardInterrupt:
        interrupt.leave("stopped by SIGINT", EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever reads the results has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_UNREADABLE)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    if failures:
        fail(_listing(failures), EXIT_UNREADABLE)


def _parser() -> Parser:
    parser = Parser("python -m bvit.focus", __doc__)
    parser.add_argument("--format", choices=OUTPUTS, default="table", help="of the results")
    parser.add_argument(
        "--sort", action="store_true", help="the least sharp first; by default as they are listed"
    )
    parser.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help=f"write each picture as NAME{MAP_SUFFIX}: orange where it is blurred, grey where "
        "unknown",
    )
    parser.add_argument(
        "--move-blurred",
        type=Path,
        metavar="DIR",
        help="move blurred pictures there; a name that is taken gets a number",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what --move-blurred would move"
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURES", help="files, folders, ...")
    return parser


def measure(options: argparse.Namespace) -> dict[str, str]:
    """Prints what is blurred.

    Returns:
      What could not be read or written: name → reason.

    Raises:
      ValueError: the names stand for no picture at all.
    """
    paths, failures = list_images(options.pictures, sys.stdin)
    # What an earlier --maps wrote is no photograph.
    paths = [path for path in paths if not path.name.endswith(MAP_SUFFIX)]
    if not paths and not failures:
        source = "standard input" if STDIN in options.pictures else ", ".join(options.pictures)
        raise ValueError(f"{source} names no picture; give files, folders or patterns.")
    maps = Maps(options.maps) if options.maps else None
    mover = Mover(options.move_blurred, options.dry_run) if options.move_blurred else None
    output = OUTPUTS[options.format]()
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(paths), unit=" images", leave=False, dynamic_ncols=True, smoothing=0.1)
    with bar, read_pictures(paths, FocusMeter()) as pictures:
        for path, pixels, found in pictures:
            if isinstance(pixels, UnreadableImageError):
                failures[str(path)] = str(pixels)
            else:
                row = make_row(path, found)
                try:
                    if maps:
                        row["map"] = str(maps.write(path, pixels, found.probability))
                    if mover and row["verdict"] == "blurred":
                        row["moved_to"] = str(mover.move(path))
                except OSError as error:
                    failures[str(path)] = f"{error.strerror}: {error.filename}"
                if options.sort:
                    rows.append(row)
                else:
                    with bar.external_write_mode(file=sys.stdout):
                        output.write([row])
            bar.update()
    output.write(sorted(rows, key=_sharpness))
    output.close()
    return failures


def _sharpness(row):
    """Images without detail come last."""
    return 2.0 if row["sharp"] is None else row["sharp"]


def make_row(path: Path, found: Focus) -> dict[str, Any]:
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


def _listing(failures: dict[str, str]) -> str:
    lines = [f"{len(failures)} could not be read, written or moved; the others are done:"]
    lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"  and {len(failures) - SHOWN_FAILURES} more")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
