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
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from bvit.arguments import Parser, run_over_files
from bvit.data import UnreadableImageError
from bvit.data.imagenet import readable
from bvit.data.listing import Photograph, list_images, read_ahead
from bvit.data.pipeline import RESIZE_RATIO
from bvit.evaluation.predictions import Predictions, Predictor
from bvit.evaluation.rows import NOTHING
from bvit.outputs import OVERLAY, Drawings
from bvit.printing import FORMATS, Row, make_output
from bvit.report.overlays import draw
from bvit.run import BEST, CHECKPOINTS, Run
from bvit.tokens import Policy

TOP = 5
HEADING = ("file", "label", "confidence", "sigma", "blurry", "tokens", "then")


def main(arguments: Sequence[str]) -> None:
    """Classifies the pictures that the arguments name."""
    options = _parser().parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    run_over_files(lambda: predict(options), undone="read")


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
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default=BEST,
        help="best: on the validation images, if the run has any; or newest",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the results")
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
    run = Run(options.run).load(checkpoint=options.checkpoint)
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
    overlays = Drawings(options.overlays, OVERLAY, paths) if options.overlays else None
    output = make_output(options.format, heading=HEADING, cells=make_cells, flatten=flatten)
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
                    shown = predictor.shown(pixels, first=done)
                    for row, one, numbers in zip(rows, pixels / 255, shown, strict=True):
                        row["overlay"] = str(
                            overlays.save(Path(row["file"]), overlay(one, numbers))
                        )
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
) -> list[Row]:
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


def make_cells(row: Row) -> list[str]:
    """What a row of the table shows."""
    return [
        row["file"],
        row["label"],
        f"{row['confidence']:.1%}",
        NOTHING if row["sigma"] is None else f"{row['sigma']:.1f}",
        f"{row['blurry_patches']:.0%}",
        f"{row['tokens']:g}",
        ", ".join(f"{label} {share:.0%}" for label, share in row["top5"][1:]),
    ]


def flatten(row: Row) -> Row:
    """A row with the best classes in columns of their own."""
    flat = dict(row)
    for place, (label, share) in enumerate(flat.pop("top5"), start=1):
        flat |= {f"label_{place}": label, f"confidence_{place}": share}
    return flat


def overlay(one: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A picture beside what the model saw of it, uint8.

    Args:
      one: in [0, 1].
      numbers: of the token that shows each patch, or -1.
    """
    seen = draw(one, numbers)
    times = len(seen) // len(one)  # small ones were enlarged
    both = np.hstack([one.repeat(times, axis=0).repeat(times, axis=1), seen])
    return np.round(255 * both).astype(np.uint8)


if __name__ == "__main__":
    main(sys.argv[1:])
