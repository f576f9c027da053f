"""Named blur conditions: how images are changed before a model sees them.

Training and evaluation read the same table, so that “blur” means one thing. A mixture such as
"sharp+blur" draws one of its parts for each image with equal chance; "mix" is the paper's name for
that one. Some names take an argument: "gaussian:2.5" blurs every image with that σ,
"imagenet_c:defocus_blur:3" is ImageNet-C's blur of that severity, "region:motion" does the motion
in a random region of each image, "noisy:motion" adds a sensor's noise afterwards, and
"stored:motion" only rounds to the 8 bits of a file.

"wiener:blur" and "richardson_lucy:blur" undo the blur with the σ that the condition after the colon
drew; "wiener_blind:…" and "richardson_lucy_blind:…" estimate σ from the image. All round the
blurred image to 8 bits first: without that, they restore far more than is possible from a file.
"""

import difflib
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bvit.image.blur import drawn_sigma, gaussian_blur, random_gaussian_blur, region_blur
from bvit.image.camera import (
    random_anisotropic_gaussian_blur,
    random_box_blur,
    random_defocus_blur,
    random_motion_blur,
    random_shake_blur,
)
from bvit.image.checks import short
from bvit.image.corruptions import ALEXNET_ERROR, SEVERITIES, check_corruption, corrupt
from bvit.image.deblur import deblur_gaussian
from bvit.image.draws import split_each
from bvit.image.glass import random_glass_blur
from bvit.image.noise import round_to_bits, sensor_noise
from bvit.image.region import region_mask
from bvit.image.variable import random_variable_gaussian_blur
from bvit.image.zoom import random_zoom_blur

Pixels = Float[Array, "n h w c"]

# The paper's section 4.1: a 19×19 kernel, σ drawn from U(1, 2) for each image.
PAPER_SIGMA_RANGE = (1.0, 2.0)
PAPER_KERNEL_SIZE = 19
# Bits for each value in an image file.
STORED_BITS = 8

Condition = Callable[[Array, Pixels], Pixels]

# Deblurring: the method, and whether the σ of the blur has to be estimated.
DEBLURRING = {
    "wiener": ("wiener", False),
    "wiener_blind": ("wiener", True),
    "richardson_lucy": ("richardson_lucy", False),
    "richardson_lucy_blind": ("richardson_lucy", True),
}

# The conditions over which ImageNet-C's benchmark of blurs takes its means; in a list of conditions
# "imagenet_c" stands for all of them.
IMAGENET_C = tuple(
    f"imagenet_c:{name}:{severity}" for name in ALEXNET_ERROR for severity in SEVERITIES
)


def _sharp(keys: Array, image: Pixels) -> Pixels:
    del keys
    return image


def _blur(keys: Array, image: Pixels) -> Pixels:
    return random_gaussian_blur(
        keys, image, sigma_range=PAPER_SIGMA_RANGE, kernel_size=PAPER_KERNEL_SIZE
    )


def _gaussian(sigma: str) -> Condition:
    value = _number(sigma)

    def blur(keys: Array, image: Pixels) -> Pixels:
        del keys
        return gaussian_blur(image, value, kernel_size=PAPER_KERNEL_SIZE)

    return blur


def _number(sigma: str) -> float:
    try:
        value = float(sigma)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ValueError(
            f"gaussian takes a sigma of 0 or more, as gaussian:2.5: got {short(sigma)}."
        )
    return value


def _imagenet_c(blur_and_severity: str) -> Condition:
    name, _, severity = blur_and_severity.partition(":")
    try:
        check_corruption(name, int(severity) if severity.isdecimal() else severity)
    except ValueError as error:
        raise ValueError(f"imagenet_c is used as imagenet_c:defocus_blur:3; {error}") from None
    return partial(corrupt, name=name, severity=int(severity))


def _region(inside: str) -> Condition:
    change = _part(inside)

    def blur(keys: Array, image: Pixels) -> Pixels:
        region_keys, keys = split_each(keys)
        mask = region_mask(region_keys, image)
        return jnp.where(mask[..., None], change(keys, image), image)

    return blur


def _noisy(before: str) -> Condition:
    change = _part(before)

    def expose(keys: Array, image: Pixels) -> Pixels:
        noise_keys, keys = split_each(keys)
        return sensor_noise(noise_keys, change(keys, image))

    return expose


def _stored(before: str) -> Condition:
    change = _part(before)
    return lambda keys, image: round_to_bits(change(keys, image), STORED_BITS)


def _deblurred(before: str, *, kind: str) -> Condition:
    method, blind = DEBLURRING[kind]
    stored, sigma = _stored(before), _known_sigma(before, kind) if not blind else None

    def deblur(keys: Array, image: Pixels) -> Pixels:
        known = None if sigma is None else sigma(keys)
        return deblur_gaussian(
            stored(keys, image), known, method=method, kernel_size=PAPER_KERNEL_SIZE
        )

    return deblur


def _known_sigma(name: str, kind: str) -> Callable[[Array], Float[Array, " n"]]:
    """Keys → the σ of the Gaussian by which a condition blurs the image of each."""
    before, _, argument = name.partition(":")
    if name == "blur":
        return partial(drawn_sigma, sigma_range=PAPER_SIGMA_RANGE)
    if before == "gaussian":
        value = _number(argument)
        return lambda keys: jnp.full(keys.shape, value, jnp.float32)
    if before == "stored":
        return _known_sigma(argument, kind)
    if before == "noisy":
        sigma = _known_sigma(argument, kind)
        return lambda keys: sigma(split_each(keys)[1])
    raise ValueError(
        f"{kind} must know the sigma of a Gaussian blur, and {name!r} has none: use blur or "
        f"gaussian:SIGMA, also with noisy: or stored: before it, or {kind}_blind:{name}."
    )


CONDITIONS: dict[str, Condition] = {
    "sharp": _sharp,
    "blur": _blur,
    "region": region_blur,  # type: ignore[dict-item]  # returns no map here
    "motion": random_motion_blur,
    "shake": random_shake_blur,
    "defocus": random_defocus_blur,
    "zoom": random_zoom_blur,
    "glass": random_glass_blur,
    "box": random_box_blur,
    "anisotropic": random_anisotropic_gaussian_blur,
    "depth": random_variable_gaussian_blur,  # type: ignore[dict-item]
}
MIXTURES = {"mix": "sharp+blur"}
# Prefixes: what follows the colon is their argument.
WITH_ARGUMENT: dict[str, Callable[[str], Condition]] = {
    "gaussian": _gaussian,
    "imagenet_c": _imagenet_c,
    "region": _region,
    "noisy": _noisy,
    "stored": _stored,
    **{kind: partial(_deblurred, kind=kind) for kind in DEBLURRING},
}
# Each prefix of a condition has a colon, and each is parsed by recursion; more have no use.
MOST_COLONS = 10
# Prefixes that draw no random numbers themselves.
DRAWLESS = ("stored", *DEBLURRING)


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """A list of conditions, with the names that stand for several of them written out."""
    several = {"imagenet_c": IMAGENET_C}
    return tuple(part for name in names for part in several.get(name, (name,)))


def drawn_by(name: str) -> str:
    """The part of a condition's name that decides its random draws.

    Storing and deblurring draw nothing, so "wiener:blur" and "blur" both give "blur", and blur each
    image alike.
    """
    kind, _, before = name.partition(":")
    return drawn_by(before) if kind in DRAWLESS else name


def split_deblurring(name: str) -> tuple[str, str]:
    """The deblurring method of a condition, and the condition before deblurring.

    "wiener:noisy:blur" gives ("wiener", "noisy:blur"), a condition without deblurring ("", itself).
    """
    kind, _, before = name.partition(":")
    return (kind, before) if kind in DEBLURRING else ("", name)


def parts(name: str) -> tuple[Condition, ...]:
    """The functions (keys, image) → image that a condition is a mixture of, mostly one.

    Raises:
      ValueError: for an unknown name; it suggests the nearest.
    """
    mixed = MIXTURES.get(name, name).split("+")
    for part in mixed:
        if part.count(":") > MOST_COLONS:
            raise ValueError(
                f"a condition has at most {MOST_COLONS} colons: got {short(part)}; leave out some."
            )
    return tuple(map(_part, mixed))


def _part(part: str) -> Condition:
    if part in CONDITIONS:
        return CONDITIONS[part]
    kind, colon, argument = part.partition(":")
    if colon and kind in WITH_ARGUMENT:
        return WITH_ARGUMENT[kind](argument)
    before_others = [f"{kind}:NAME" for kind in ("noisy", *DRAWLESS, "region")]
    arguments = ["gaussian:SIGMA", "imagenet_c:BLUR:SEVERITY", *before_others]
    known = [*CONDITIONS, *MIXTURES, *arguments]
    by_kind = {name.partition(":")[0]: name for name in reversed(known)}
    near = difflib.get_close_matches(kind, by_kind, n=1)
    hint = f"did you mean {by_kind[near[0]]!r}?" if near else "join several with '+'."
    raise ValueError(f"condition must be one of {', '.join(known)}: got {short(part)}; {hint}")


def indexed_keys(key: Array, index: Int[Array, " n"]) -> Array:
    """One PRNG key for each image, from its index: the same whatever batch the image is in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def apply_condition(name: str, keys: Array, image: Pixels) -> Pixels:
    """Applies a named condition to a batch.

    Args:
      name: a key of `CONDITIONS` or `MIXTURES`, one of `WITH_ARGUMENT` with its argument, or
        several joined by "+". Static.
      keys: one PRNG key for each image, [n]; what happens to an image depends on its key alone.
      image: pixels in [0, 1].

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: for an unknown name.
    """
    functions = parts(name)
    if len(functions) == 1:
        return functions[0](keys, image)
    both = jax.vmap(jax.random.split)(keys)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(functions)))(both[:, 0])
    result = image
    for i, function in enumerate(functions):
        chosen = (choice == i)[:, None, None, None]
        result = jnp.where(chosen, function(both[:, 1], image), result)
    return result
