"""Labels images and videos: python -m bvit.predict --run=runs/vit_mask IMAGES...

With --weights=FILE --model=NAME instead of --run, it uses published weights:

  python -m bvit.predict --weights=hf:timm/deit_tiny_patch16_224.fb_in1k IMAGES...

IMAGES are image and video files, folders of images, patterns such as 'shots/**/*.jpg', streams
(rtsp://..., /dev/video0), and - for a list of names on stdin. The model sees the middle of each
image. Each image, or frame of a video, gets a line: the class, the model's confidence, the blur,
and the number of patch tokens that were computed. The blur has two figures. sigma is its standard
deviation, in pixels of the file, in the direction where it is widest: a motion over 30 pixels has
30/√12 = 8.7. blurry is the share of patches out of focus, at the size that the model sees.
Images that can't be read are listed at the end, with exit code 1.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from tqdm import tqdm

from bvit.arguments import Parser, run_over_files
from bvit.data.imagenet import readable
from bvit.data.listing import Photograph, list_images, read_ahead
from bvit.data.video import is_stream, is_video
from bvit.evaluation.predictions import Predictions, Predictor
from bvit.evaluation.rows import NOTHING
from bvit.printing import FORMATS, Row, make_output
from bvit.published import add_arguments, add_checkpoint, keep_programs, load
from bvit.tokens import Policy
from bvit.trained import Trained

if TYPE_CHECKING:
    from bvit.survey.annotation import Overlays

TOP = 5
HEADING = ("file", "label", "confidence", "sigma", "blurry", "tokens", "next best")


def main(arguments: Sequence[str]) -> None:
    """Classifies the images that the arguments name."""
    options = _parser().parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    run_over_files(lambda: predict(options), undone="read")


def _parser() -> Parser:
    parser = Parser("python -m bvit.predict", __doc__)
    add_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--policy",
        default="",
        metavar="NAME[:BUDGET]",
        help="which tokens are computed: keep, cluster:0.5, drop:98, ...; by default those that "
        "the run trained with",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="of the results; not table for streams"
    )
    parser.add_argument(
        "--overlays",
        type=Path,
        metavar="DIR",
        help="draw what was found and what was computed over each image, as "
        "DIR/NAME.overlay.jpg, and over each video, as DIR/NAME.overlay.mp4; only overlays of an "
        "earlier run are replaced",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=32,
        help="images that are read and run together; a CPU runs four of them in a thread for "
        "each core",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, ...")
    return parser


def predict(options: argparse.Namespace) -> tuple[dict[str, str], int]:
    """Classifies images, and prints what was found.

    Returns:
      What could not be read, name → reason; and how many images were.

    Raises:
      ValueError: the model can't be used, or can't follow the policy; or stdin names no image, or
        a stream is to be printed as a table.
    """
    streams = [name for name in options.images if is_stream(name)]
    if streams and options.format == "table":
        raise ValueError(
            "a stream may never end, and a table is printed at the end: add --format=jsonl or "
            "--format=csv."
        )
    files = [name for name in options.images if not is_stream(name)]
    paths, failures = list_images(files, sys.stdin)
    names = [*map(str, paths), *streams]
    if not (names or failures):
        raise ValueError("standard input names no image: write one name on each line.")
    trained = load(options)
    policy = trained.policy(options.policy)
    has_video = any(map(is_video, names))
    batch_size = options.batch_size if has_video else _enough(len(names), options.batch_size)
    predictor = _predictor(trained, policy, batch_size)
    overlays = _overlays(options.overlays, names, trained) if options.overlays else None
    output = make_output(options.format, heading=HEADING, cells=make_cells, flatten=flatten)
    done, started = 0, time.perf_counter()

    def begin(seen: list[Photograph]) -> Callable[[], None]:
        """Starts to classify images; the function that it returns prints their rows."""
        if not seen:
            return lambda: None
        pixels, first = np.stack([one.crop for one in seen]), done
        answers = predictor.begin(pixels, first)

        def finish() -> None:
            rows = make_rows(seen, answers(), trained.class_names, policy)
            if overlays:
                shown = predictor.shown(pixels, first)
                for row, one, where in zip(rows, seen, shown, strict=True):
                    row["overlay"] = str(overlays.draw(one, row, where))
            with bar.external_write_mode(file=sys.stdout):
                output.write(rows)

        return finish

    total = None if has_video else len(names)
    finish = begin([])
    bar = tqdm(total=total, unit="image", leave=False, dynamic_ncols=True)
    try:
        for group in read_ahead(names, batch_size, trained.preprocess, keep_frames=bool(overlays)):
            seen = [found for found in group if isinstance(found, Photograph)]
            failures |= {found[0]: str(found[1]) for found in group if isinstance(found, tuple)}
            before, finish = finish, begin(seen)
            before()  # prints, while the device classifies this group and threads read the next
            done += len(seen)
            bar.update(len(group))
        finish()
    finally:
        bar.close()
        if overlays:
            overlays.close()
    output.close()
    if has_video:
        seconds = time.perf_counter() - started
        print(f"{done} frames in {seconds:.1f} s: {done / seconds:.1f} frames/s", file=sys.stderr)
    return failures, done


def _enough(count: int, most: int) -> int:
    """A batch size for so many images: at most `most`, or a power of two, so that few compile."""
    return min(most, 1 << max(0, count - 1).bit_length())


def _predictor(trained: Trained, policy: Policy, batch_size: int) -> Predictor:
    c, preprocess = trained.config, trained.preprocess
    return Predictor(
        trained.model,
        trained.variables,
        policy,
        image_size=preprocess.image_size,
        mean=preprocess.mean,
        std=preprocess.std,
        seed=c.seed,
        batch_size=batch_size,
    )


def _overlays(folder: Path, names: Sequence[str], trained: Trained) -> "Overlays":
    from bvit.survey.annotation import Overlays  # loads Matplotlib

    return Overlays(folder, names, trained.preprocess)


def make_rows(
    seen: Sequence[Photograph],
    found: Predictions,
    class_names: Sequence[str],
    policy: Policy,
) -> list[Row]:
    """One mapping an image, of plain values: what the output formats print."""
    rows = []
    for i, photograph in enumerate(seen):
        best = np.argsort(-found.probability[i], kind="stable")[:TOP]
        top = [(readable(class_names[c]), round(float(found.probability[i, c]), 4)) for c in best]
        width = photograph.blur_width
        rows.append(
            {
                "file": photograph.name,
                "frame": photograph.frame,
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
        row["file"] if row["frame"] is None else f"{row['file']} #{row['frame']}",
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


if __name__ == "__main__":
    keep_programs()
    main(sys.argv[1:])
