"""Measures the focus map on real photographs, fits its weights, and draws the threshold's figure.

    python -m bvit.studies.focus measure   --pairs=DIR --masks=DIR --sharp=PICTURES
    python -m bvit.studies.focus fit       --pairs=DIR --masks=DIR --sharp=PICTURES [--sharp=...]
    python -m bvit.studies.focus threshold --pairs=DIR --to=docs/focus_threshold.png
    python -m bvit.studies.focus pictures  --to=docs/focus_maps.jpg
    python -m bvit.studies.focus speed     --sharp=PICTURES [--count=500]

--pairs is a folder of NAME_A.jpg and NAME_B.jpg, one scene focused near and far; --masks one of
NAME.jpg and NAME_sharp.png, white where it is sharp; --sharp names sharp photographs.
`measure` prints how well each measure separates patches, photographs and pixels, and its time;
`fit` the weights for the source, and their results on scenes that they were not fitted to;
`threshold` draws the best threshold of the Laplacian against size, noise and compression;
`pictures` maps beside scikit-image's photographs, blurred by region; `speed` times the command over
so many JPEGs of 2 megapixels beside a loop in OpenCV.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.studies import focus_figures, focus_fit, focus_measure, focus_speed, sigma_fit
from bvit.studies.focus_truth import Truth, blur_masks, blurred_on_purpose, focus_pairs

# Pairs are fitted as they are, smaller and enlarged.
SCALES = (1.0, 0.6, 1.6)
# At most so many sharp photographs of each --sharp.
MOST_SHARP = 30
# What each of the five can't do without.
NEEDED = {
    "measure": ("pairs", "masks", "sharp"),
    "fit": ("pairs", "masks", "sharp"),
    "threshold": ("pairs", "to"),
    "pictures": ("to",),
    "speed": ("sharp",),
}


def main(arguments: Sequence[str]) -> None:
    """Does one of the five."""
    parser = Parser("python -m bvit.studies.focus", __doc__)
    parser.add_argument("what", choices=tuple(NEEDED))
    parser.add_argument("--pairs", type=Path, help="folder of pairs")
    parser.add_argument("--masks", type=Path, help="folder of drawn maps")
    parser.add_argument("--sharp", action="append", default=[], help="sharp photographs")
    parser.add_argument("--to", type=Path, help="the figure")
    parser.add_argument("--count", type=int, default=500, help="JPEGs that are timed")
    parser.add_argument("--seed", type=int, default=0, help="of blurs, noise and folds")
    options = parser.parse_args(arguments)
    missing = [f"--{name}" for name in NEEDED[options.what] if not getattr(options, name)]
    if missing:
        parser.error(f"{options.what} needs {', '.join(missing)}")
    rng = np.random.default_rng(options.seed)
    try:
        if options.what == "measure":
            print(focus_measure.report(options.pairs, options.masks, options.sharp, rng))
        elif options.what == "fit":
            fit(options.pairs, options.masks, options.sharp, rng)
        elif options.what == "threshold":
            print(focus_figures.threshold_figure(options.pairs, options.to, rng))
        elif options.what == "pictures":
            focus_figures.pictures(options.to)
        else:
            print(focus_speed.report(options.sharp, options.count))
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)


def fit(pairs: Path, masks: Path, sharp: Sequence[str], rng: np.random.Generator) -> None:
    """Prints results on scenes left out, and then the weights."""
    truth: list[Truth] = [one for scale in SCALES for one in focus_pairs(pairs, scale=scale)]
    truth += blur_masks(masks)
    for names in sharp:
        truth += blurred_on_purpose([names], MOST_SHARP, rng)
    examples = focus_fit.measure(truth, rng)
    scores = focus_fit.left_out(examples, rng)
    print("| photographs | scale | change | patches | AUC | accuracy |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, scale, change, count, area, right in focus_fit.grouped(examples, scores):
        print(f"| {kind} | {scale:g} | {change} | {count} | {area:.3f} | {right:.3f} |")
    print("\n" + focus_measure.left_out_details(examples, scores))
    print(focus_fit.fit(examples, rng))
    blurred = sigma_fit.blurred_photographs(sharp[:1], MOST_SHARP, rng)
    print("\n" + sigma_fit.table(blurred, sigma_fit.left_out_sigma(blurred, rng)))
    print(sigma_fit.fit_sigma(blurred))
    in_focus = [one for one in truth if one.kind != "blurred" and one.scale == 1]
    print("WHOLE:", focus_measure.fit_whole(in_focus, sharp, rng))


if __name__ == "__main__":
    main(sys.argv[1:])
