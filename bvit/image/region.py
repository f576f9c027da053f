"""Random regions of an image: a few smooth shapes, as things that lie out of focus have."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

# A region's outline follows smooth noise drawn on this many points along each side: a handful of
# blobs an image, about the size of the objects in a photograph.
REGION_NOISE_POINTS = 6

# Halvings of the interval in which the region's threshold is sought: the values of the noise are
# then told apart finely enough to hit the drawn area to within about a pixel in 512 x 512.
AREA_BISECTIONS = 20


def smooth_region(
    key: Key[Array, ""], area: Float[Array, ""], shape: tuple[int, int]
) -> Bool[Array, "h w"]:
    """True where smooth noise is highest, over `area` (a share) of one image of that shape."""
    noise = jax.random.normal(key, (REGION_NOISE_POINTS, REGION_NOISE_POINTS), jnp.float32)
    noise = jax.image.resize(noise, shape, method="cubic")
    wanted = jnp.round(area * noise.size).astype(jnp.int32)

    # Bisection, since sorting every pixel takes ten times as long as blurring them.
    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_many = jnp.sum(noise > middle, dtype=jnp.int32) > wanted
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    # At `high` there are never too many; 1 below the lowest, all can be taken.
    bounds = (jnp.min(noise) - 1, jnp.max(noise))
    _, threshold = lax.fori_loop(0, AREA_BISECTIONS, halve, bounds)
    return noise > threshold
