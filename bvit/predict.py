"""Labels images: python -m bvit.predict --run=runs/vit_mask PICTURES...

PICTURES are files, folders, patterns such as 'shots/**/*.jpg', and - for a list of them on stdin.
The model is given the middle of each picture, at the size that the run was trained with. A line
has the class, the model's confidence, the blur, and the number of patch tokens that were computed.
There are two figures for the blur. sigma, in pixels of the file, is how far it spreads light in the
direction where it spreads most: a motion over 30 pixels has 30/√12 = 8.7. blurry is the share of
the patches that count as blurry at the size that the model is given.
Pictures that can't be read are listed at the end, with exit code 1.
"""

import argparse
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from bvit import outputs
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.data import UnreadableImageError
from bvit.data.imagenet import readable
from bvit.data.listing import Photograph, list_images, read_ahead
from bvit.data.pipeline import RESIZE_RATIO
from bvit.evaluation.predictions import Predictions, Predictor
from bvit.evaluation.rows import NOTHING, align
from bvit.interrupt import Interrupted, SignalWatch, leave
from bvit.report.overlays import draw
from bvit.run import Run
from bvit.tokens import Policy

EXIT_UNREADABLE = 1
TOP = 5
SHOWN_FAILURES = 20


def main(arguments: Sequence[str]) -> None:
    """Classifies the pictures that the arguments name."""
    options = _parser().parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    try:
        with SignalWatch():
            failures, done = predict(options)
    except Interrupted as stop:
        leave(str(stop), stop.exit_code)
    except BrokenPipeError:  # whoever reads the results has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    if failures:
        fail(_listing(failures, done), EXIT_UNREADABLE)


def _parser() -> Parser:
    parser = Parser("python -m bvit.predict", __doc__)
    parser.add_argument("--run", required=True, type=Path, help="run directory of the model")
    parser.add_argument(
        "--policy",
        default="",
        metavar="NAME[:BUDGET]",
        help="which tokens are computed: keep, cluster:0.5, drop:98, ...; by default those that "
        "the run trained with",
    )
    parser.add_argument("--format", choices=OUTPUTS, default="table", help="of the results")
    parser.add_argument(
        "--overlays",
        type=Path,
        metavar="DIR",
        help="write each picture beside what the model saw of it, as DIR/NAME.overlay.png: patches "
        "that no token shows are dark, and lines run around patches that share a token; only "
        "overlays of an earlier run are replaced",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="pictures that run together")
    parser.add_argument("pictures", nargs="+", metavar="PICTURES", help="files, folders, ...")
    return parser


def predict(options: argparse.Namespace) -> tuple[dict[str, str], int]:
    """Prints what is on the pictures.

    Returns:
      What could not be read, name → reason; and how many pictures were.

    Raises:
      ValueError: the run can't be used, or can't follow the policy; or stdin names no picture.
    """
    paths, failures = list_images(options.pictures, sys.stdin)
    if not (paths or failures):
        raise ValueError("standard input names no picture: write one name on each line.")
    run = Run(options.run).load()
    c = run.config
    policy = run.policy(options.policy)
    predictor = Predictor(
        run.model,
        run.variables,
        policy,
        image_size=c.data.image_size,
        mean=tuple(c.data.mean),
        std=tuple(c.data.std),
        score=c.tokens.score,
        threshold=c.tokens.threshold,
        seed=c.seed,
        batch_size=options.batch_size,
    )
    overlays = Overlays(options.overlays, paths) if options.overlays else None
    output = OUTPUTS[options.format]()
    size = run.config.data.image_size
    short_side = run.config.data.resize or round(size * RESIZE_RATIO)
    crop = {"image_size": size, "short_side": short_side, "interpolation": c.data.interpolation}
    done = 0
    with tqdm(total=len(paths), unit="picture", leave=False, dynamic_ncols=True) as bar:
        for group in read_ahead(paths, options.batch_size, **crop):
            failures |= {str(p): str(e) for p, e in group if isinstance(e, UnreadableImageError)}
            seen = [(path, found) for path, found in group if isinstance(found, Photograph)]
            if seen:
                pixels = np.stack([found.crop for _, found in seen])
                found = predictor(pixels, first=done)
                rows = make_rows(seen, found, run.class_names, policy)
                if overlays:
                    overlays.save(rows, pixels, predictor.shown(pixels, first=done))
                done += len(pixels)
                with bar.external_write_mode(file=sys.stdout):
                    output.write(rows)
            bar.update(len(group))
    output.close()
    return failures, done


def make_rows(
    seen: Sequence[tuple[Path, Photograph]],
    found: Predictions,
    class_names: Sequence[str],
    policy: Policy,
) -> list[dict[str, Any]]:
    """One mapping a picture, of plain values: what the output formats print."""
    rows = []
    for i, (path, photograph) in enumerate(seen):
        best = np.argsort(-found.probability[i], kind="stable")[:TOP]
        top = [(readable(class_names[c]), round(float(found.probability[i, c]), 4)) for c in best]
        width = photograph.blur_width
        rows.append(
            {
                "file": str(path),
                "label": top[0][0],
                "confidence": top[0][1],
                "blurry_patches": round(float(found.blurry[i]), 4),
                "sigma": None if width is None else round(width, 2),
                "tokens": round(float(found.tokens[i]), 1),
                "policy": policy.label,
                "top5": top,
            }
        )
    return rows


class Table:
    """Prints all rows at the end, in aligned columns."""

    def __init__(self) -> None:
        """Starts with the names of the columns."""
        self._lines = [["file", "label", "confidence", "sigma", "blurry", "tokens", "then"]]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Remembers rows."""
        for row in rows:
            self._lines.append(
                [
                    row["file"],
                    row["label"],
                    f"{row['confidence']:.1%}",
                    NOTHING if row["sigma"] is None else f"{row['sigma']:.1f}",
                    f"{row['blurry_patches']:.0%}",
                    f"{row['tokens']:g}",
                    ", ".join(f"{label} {share:.0%}" for label, share in row["top5"][1:]),
                ]
            )

    def close(self) -> None:
        """Prints them."""
        if len(self._lines) > 1:
            print(align(self._lines))


class Csv:
    """Prints rows as they come, the five best classes in columns of their own."""

    def __init__(self) -> None:
        """Prints no heading before the first row."""
        self._writer = None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Prints rows."""
        for row in rows:
            flat = dict(row)
            for place, (label, share) in enumerate(flat.pop("top5"), start=1):
                flat |= {f"label_{place}": label, f"confidence_{place}": share}
            if self._writer is None:
                self._writer = csv.DictWriter(sys.stdout, list(flat), lineterminator="\n")
                self._writer.writeheader()
            self._writer.writerow(flat)
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to print."""


class JsonLines:
    """Prints each row as it comes, as a JSON object on a line."""

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Prints rows."""
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to print."""


OUTPUTS = {"table": Table, "csv": Csv, "jsonl": JsonLines}


class Overlays:
    """Writes each picture beside what the model saw of it, as NAME.overlay.png.

    An overlay of an earlier run is replaced; any other file is kept, and so is every picture that
    is classified: the overlay then gets a number.
    """

    def __init__(self, folder: Path, pictures: Sequence[Path]) -> None:
        """Makes the folder, if there is none.

        Args:
          folder: where to write.
          pictures: that are classified.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._taken = {found for path in pictures if (found := _identity(path))}

    def save(self, rows: list[dict[str, Any]], pixels: np.ndarray, where: np.ndarray) -> None:
        """Writes pictures beside what was shown of them, and their files into the rows."""
        for row, one, numbers in zip(rows, pixels / 255, where, strict=True):
            seen = draw(one, numbers)
            times = len(seen) // len(one)  # small ones were enlarged
            both = np.hstack([one.repeat(times, axis=0).repeat(times, axis=1), seen])
            mark, drawn = PngInfo(), io.BytesIO()
            mark.add_text("Software", outputs.MARK)
            Image.fromarray(np.round(255 * both).astype(np.uint8)).save(drawn, "PNG", pnginfo=mark)
            path = self._free(Path(row["file"]).stem)
            outputs.write(path, drawn.getvalue())
            self._taken.add(_identity(path))
            row["overlay"] = str(path)

    def _free(self, stem: str) -> Path:
        """A name that may be written to: names that are taken are numbered."""
        for count in itertools.count(1):
            number = "" if count == 1 else f".{count}"
            path = self._folder / f"{stem}{number}{outputs.OVERLAY}"
            if not os.path.lexists(path):
                return path
            if _identity(path) not in self._taken and outputs.is_overlay(path):
                return path
        raise AssertionError("numbers do not end")


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file has in common with its other names; None if it can't be reached."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listing(failures: dict[str, str], done: int) -> str:
    others = "; the others are done" if done else ""
    lines = [f"{len(failures)} could not be read{others}:"]
    lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"  and {len(failures) - SHOWN_FAILURES} more")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
