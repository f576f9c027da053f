"""Kernels against loops in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.kernels import disk_kernel, gaussian_kernel, motion_kernel, shake_kernel

SIZE = 15
gaussian, disk, motion, shake = (
    jax.jit(partial(build, kernel_size=SIZE))
    for build in (gaussian_kernel, disk_kernel, motion_kernel, shake_kernel)
)
BUILDERS = {
    "gaussian": lambda strength: gaussian(strength, 0.5 * strength, 30.0),
    "disk": disk,
    "motion": lambda strength: motion(strength, 30.0, 45.0),
    "shake": lambda strength: shake(jax.random.key(3), strength),
}


def looped_gaussian(along, across, angle):
    kernel, angle = np.zeros((SIZE, SIZE)), np.radians(angle)
    for i in range(SIZE):
        for j in range(SIZE):
            point = np.array([j - SIZE // 2, SIZE // 2 - i])
            u = point @ [np.cos(angle), np.sin(angle)] / along
            v = point @ [-np.sin(angle), np.cos(angle)] / across
            kernel[i, j] = np.exp(-(u * u + v * v) / 2)
    return kernel / kernel.sum()


def looped_disk(radius):
    kernel = np.zeros((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            distance = np.hypot(i - SIZE // 2, j - SIZE // 2)
            kernel[i, j] = min(max(radius + 0.5 - distance, 0), 1)
    return kernel / kernel.sum()


def looped_motion(length, angle, bend):
    """Walks along the arc in short steps, turning a little at each."""
    steps = 20_000
    time = (np.arange(steps) + 0.5) / steps - 0.5
    direction = np.radians(angle + bend * time)
    path = np.cumsum(np.exp(1j * direction)) * length / steps
    path -= path.mean()
    kernel = np.zeros((SIZE + 1, SIZE + 1))
    row, column = SIZE // 2 - path.imag, SIZE // 2 + path.real
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = row - top, column - left
    np.add.at(kernel, (top, left), (1 - down) * (1 - right))
    np.add.at(kernel, (top, left + 1), (1 - down) * right)
    np.add.at(kernel, (top + 1, left), down * (1 - right))
    np.add.at(kernel, (top + 1, left + 1), down * right)
    return kernel[:SIZE, :SIZE] / steps


@pytest.mark.parametrize("parameters", [(2.0, 2.0, 0.0), (3.0, 0.7, 25.0), (1.0, 2.0, -60.0)])
def test_gaussian(parameters):
    kernel = gaussian(*parameters)
    np.testing.assert_allclose(kernel, looped_gaussian(*parameters), atol=1e-6)


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.5, 7.0])
def test_disk(radius):
    kernel = disk(radius)
    np.testing.assert_allclose(kernel, looped_disk(radius), atol=1e-6)


@pytest.mark.parametrize(
    "parameters", [(6.0, 0.0, 0.0), (9.0, 30.0, 0.0), (12.0, -70.0, 90.0), (10.0, 45.0, 200.0)]
)
def test_motion(parameters):
    kernel = motion(*parameters)
    np.testing.assert_allclose(kernel, looped_motion(*parameters), atol=5e-4)


def test_a_horizontal_path_is_a_row_and_a_vertical_one_a_column():
    horizontal = np.asarray(motion(8.0, 0.0, 0.0))
    assert horizontal[SIZE // 2].sum() == pytest.approx(1)
    vertical = motion(8.0, 90.0, 0.0)
    np.testing.assert_allclose(vertical, horizontal.T, atol=1e-5)
    rising = np.asarray(motion(8.0, 45.0, 0.0))
    assert rising[SIZE // 2 - 2, SIZE // 2 + 2] > 0.05 > rising[SIZE // 2 + 2, SIZE // 2 + 2]


def test_shakes_are_as_long_as_asked_and_differ():
    keys = jax.random.split(jax.random.key(0), 50)
    kernels = np.asarray(shake(keys, 12.0))
    extent = [np.ptp(np.argwhere(k > 1e-6), axis=0).max() for k in kernels]
    assert max(extent) <= 12 + 2  # a point is spread over two pixels
    assert min(extent) < 8 < np.mean(extent)  # some turn back
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


@pytest.mark.parametrize("name", BUILDERS)
def test_sum_centre_and_identity(name):
    strengths = np.array([0.0, 1.0, 5.0])
    if name == "shake":
        kernels = np.stack([BUILDERS[name](s) for s in strengths])
    else:
        kernels = np.asarray(BUILDERS[name](strengths))
        np.testing.assert_allclose(kernels[1], BUILDERS[name](1.0), atol=1e-7)
    point = np.zeros((SIZE, SIZE))
    point[SIZE // 2, SIZE // 2] = 1
    np.testing.assert_array_equal(kernels[0], point)
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, rtol=1e-6)
    place = np.arange(SIZE) - SIZE // 2
    for axis in (1, 2):
        np.testing.assert_allclose(kernels.sum(axis) @ place, 0, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_are_finite_and_the_slope(name):
    weight = np.random.default_rng(0).normal(size=(SIZE, SIZE))

    def total(strength):
        return (weight * BUILDERS[name](strength)).sum()

    slope = jax.jit(jax.grad(total))
    assert np.isfinite([slope(0.0), slope(1e-6)]).all()
    quotient = (total(4.31 + 1e-3) - total(4.31 - 1e-3)) / 2e-3
    np.testing.assert_allclose(slope(4.31), quotient, rtol=0.05, atol=2e-3)


def test_takes_integers_and_bfloat16_and_refuses_an_even_kernel():
    assert disk_kernel(2).dtype == disk_kernel(jnp.bfloat16(2)).dtype == jnp.float32
    for build in (disk_kernel, gaussian_kernel, motion_kernel):
        with pytest.raises(ValueError, match="odd integer"):
            build(2.0, kernel_size=8)
