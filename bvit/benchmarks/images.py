"""Blurs and focus scores, beside torchvision, dm-pix, OpenCV, SciPy and scikit-image."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import bvit
from bvit.benchmarks import apart, corruption_peers, torch_peers
from bvit.benchmarks.harness import Case, Function, Kind
from bvit.image import kernels
from bvit.image.zoom import STEPS

# 32 images of ImageNet's size: what the speed targets of the image functions are stated for. They
# do not fill an accelerator.
BATCH, ACCELERATOR_BATCH, SIZE, PATCH, KERNEL = 32, 256, 224, 16, 19
# Of ImageNet-C's originals so many images take seconds.
FEW = 4
# Blurs that are mixed where each pixel has a sigma, as people do who have no function for it.
LEVELS = 8


def cases(kind: Kind) -> Iterator[Case]:
    """All rows of the suite; on accelerators those beside torchvision alone."""
    rng = np.random.default_rng(0)
    yield from _beside_torchvision(ACCELERATOR_BATCH if kind == "accelerator" else BATCH, rng)
    if kind != "cpu":
        return
    pictures = rng.random((BATCH, SIZE, SIZE, 3), np.float32)
    yield from _gaussian(pictures, rng)
    yield from _scores(pictures)
    yield from _camera(pictures, rng)
    yield _zoom(pictures, rng)
    yield _variable(pictures, rng)
    yield from _imagenet_c(pictures[:FEW])


def _beside_torchvision(batch: int, rng: np.random.Generator) -> Iterator[Case]:
    image = jnp.asarray(rng.random((batch, SIZE, SIZE, 3), np.float32))
    sigma = jnp.asarray(rng.uniform(1, 2, batch).astype(np.float32))
    blur, variance = apart.start(
        ("blur", "variance"), torch_peers.pixels, batch, SIZE, PATCH, KERNEL, jax.default_backend()
    )
    options = {"images": batch, "group": "torchvision"}
    yield Case(
        "image",
        f"gaussian_blur, k={KERNEL}, a σ each, {batch}×{SIZE}²",
        lambda: bvit.gaussian_blur(image, sigma, kernel_size=KERNEL),
        "torchvision's gaussian_blur, looped",
        blur,
        bytes=2 * image.nbytes,
        **options,
    )
    yield Case(
        "image",
        f"patch_laplacian_variance, border=image, {batch}×{SIZE}²",
        lambda: bvit.patch_laplacian_variance(image, patch_size=PATCH, border="image"),
        "torch's conv2d and var",
        variance,
        bytes=image.nbytes,
        **options,
    )


def _blur(name: str, pictures: np.ndarray, run: Function, peer: str, peer_run: Function) -> Case:
    """A row of a blur, which has to read and write each pixel once at least."""
    name = f"{name}, {len(pictures)}×{SIZE}²"
    return Case("image", name, run, peer, peer_run, bytes=2 * pictures.nbytes)


def _gaussian(pictures: np.ndarray, rng: np.random.Generator) -> Iterator[Case]:
    import cv2
    import dm_pix

    sigmas = rng.uniform(1, 2, BATCH).astype(np.float32)
    image, sigma = jnp.asarray(pictures), jnp.asarray(sigmas)
    name = f"gaussian_blur, k={KERNEL}, a σ each"

    def blur() -> object:
        return bvit.gaussian_blur(image, sigma, kernel_size=KERNEL)

    def looped() -> np.ndarray:
        sides, border = (KERNEL, KERNEL), cv2.BORDER_REFLECT_101
        pairs = zip(pictures, sigmas, strict=True)
        return np.stack([cv2.GaussianBlur(p, sides, float(s), borderType=border) for p, s in pairs])

    pix = jax.jit(jax.vmap(lambda x, s: dm_pix.gaussian_blur(x, s, KERNEL)))
    dm_pix_run = lambda: pix(image, sigma)  # noqa: E731
    case = _blur(name, pictures, blur, "dm-pix, jit(vmap)", dm_pix_run)
    yield case
    yield dataclasses.replace(case, peer="cv2.GaussianBlur, looped", peer_run=looped)


def _scores(pictures: np.ndarray) -> Iterator[Case]:
    image = jnp.asarray(pictures)
    for border in ("image", "patch"):
        yield Case(
            "image",
            f"patch_laplacian_variance, border={border}, {BATCH}×{SIZE}²",
            lambda b=border: bvit.patch_laplacian_variance(image, patch_size=PATCH, border=b),
            f"cv2.Laplacian by {border} and NumPy, looped",
            lambda b=border: np.stack([_opencv_scores(picture, b) for picture in pictures]),
            bytes=pictures.nbytes,
        )


def _opencv_scores(picture: np.ndarray, border: str) -> np.ndarray:
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) * 255
    side = SIZE // PATCH
    if border == "image":
        edges = cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101)
        return edges.reshape(side, PATCH, side, PATCH).var(axis=(1, 3))
    tiles = grey.reshape(side, PATCH, side, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)
    scores = [cv2.Laplacian(tile, cv2.CV_32F).var() for tile in tiles]
    return np.array(scores).reshape(side, side)


def _camera(pictures: np.ndarray, rng: np.random.Generator) -> Iterator[Case]:
    import cv2

    image = jnp.asarray(pictures)
    length, radius, along, across, angle = (
        rng.uniform(*bounds, BATCH).astype(np.float32)
        for bounds in ((5, 15), (2, 6), (2, 4), (0.5, 2), (-90, 90))
    )
    blurs: dict[str, tuple[Callable, object]] = {
        "motion_blur": (
            lambda: bvit.image.motion_blur(image, length, angle),
            kernels.motion_kernel(length, angle),
        ),
        "defocus_blur": (
            lambda: bvit.image.defocus_blur(image, radius),
            kernels.disk_kernel(radius),
        ),
        "anisotropic_gaussian_blur": (
            lambda: bvit.image.anisotropic_gaussian_blur(image, along, across, angle),
            kernels.gaussian_kernel(along, across, angle),
        ),
    }
    for name, (blur, kernel) in blurs.items():
        # cv2.filter2D correlates: the kernels are turned for it, and made beforehand.
        turned = np.asarray(kernel)[:, ::-1, ::-1]

        def looped(turned: np.ndarray = turned) -> np.ndarray:
            return np.stack([cv2.filter2D(p, -1, k) for p, k in zip(pictures, turned, strict=True)])

        yield _blur(f"{name}, a kernel each", pictures, blur, "cv2.filter2D, looped", looped)
    widths = rng.choice([3, 5, 7, 9], BATCH)
    yield _blur(
        "box_blur, a width each",
        pictures,
        lambda: bvit.image.box_blur(image, widths.astype(np.float32)),
        "cv2.blur, looped",
        lambda: np.stack(
            [cv2.blur(p, (int(w), int(w))) for p, w in zip(pictures, widths, strict=True)]
        ),
    )


def _zoom(pictures: np.ndarray, rng: np.random.Generator) -> Case:
    import cv2

    image, amounts = jnp.asarray(pictures), rng.uniform(0.05, 0.2, BATCH).astype(np.float32)

    def magnified(picture: np.ndarray, factor: float) -> np.ndarray:
        move = (SIZE - 1) / 2 * (1 - factor)
        matrix = np.array([[factor, 0, move], [0, factor, move]])
        return cv2.warpAffine(picture, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)

    def looped() -> np.ndarray:
        return np.stack(
            [
                np.mean([magnified(p, 1 + a * t) for t in np.linspace(0, 1, STEPS)], axis=0)
                for p, a in zip(pictures, amounts, strict=True)
            ]
        )

    def blur() -> object:
        return bvit.image.zoom_blur(image, amounts)

    return _blur("zoom_blur", pictures, blur, "mean of cv2.warpAffine, looped", looped)


def _variable(pictures: np.ndarray, rng: np.random.Generator) -> Case:
    import scipy.ndimage

    image = jnp.asarray(pictures)
    ramp = np.linspace(0.5, 4, SIZE, dtype=np.float32)
    sigmas = np.broadcast_to(ramp, pictures.shape[:3]) + rng.uniform(0, 0.5, (BATCH, 1, 1))
    sigmas = sigmas.astype(np.float32)

    def blended(picture: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        levels = np.linspace(sigma.min(), sigma.max(), LEVELS)
        stack = [scipy.ndimage.gaussian_filter(picture, (s, s, 0), mode="mirror") for s in levels]
        place = (sigma - levels[0]) / (levels[1] - levels[0])
        weights = (np.maximum(0, 1 - np.abs(place - i)) for i in range(LEVELS))
        return sum(weight[..., None] * level for weight, level in zip(weights, stack, strict=True))

    return _blur(
        f"variable_gaussian_blur, exact, k={KERNEL}",
        pictures,
        lambda: bvit.image.variable_gaussian_blur(image, sigmas),
        f"{LEVELS} levels of SciPy's, blended, looped",
        lambda: np.stack([blended(p, s) for p, s in zip(pictures, sigmas, strict=True)]),
    )


def _imagenet_c(pictures: np.ndarray) -> Iterator[Case]:
    image, key = jnp.asarray(pictures), jax.random.key(0)
    for name in corruption_peers.BLURS:

        def corrupt(name: str = name) -> object:
            options = {"name": name, "severity": corruption_peers.SEVERITY}
            return bvit.image.corruptions.corrupt(key, image, **options)

        def original(name: str = name) -> np.ndarray:
            return corruption_peers.blur_all(name, pictures)

        title = f"ImageNet-C {name} {corruption_peers.SEVERITY}"
        yield _blur(title, pictures, corrupt, "the published loop", original)
