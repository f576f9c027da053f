"""Random regions; `region_blur`'s tests say more of their shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.region import region_mask

IMAGES = np.zeros((40, 24, 30, 3), np.float32)


def test_covers_shares_within_the_range():
    mask = region_mask(jax.random.key(0), IMAGES, area_range=(0.2, 0.6))
    area = np.asarray(mask).mean(axis=(1, 2))
    assert (mask.shape, mask.dtype) == (IMAGES.shape[:-1], jnp.bool_)
    assert 0.2 - 0.01 <= area.min() < 0.3
    assert 0.5 < area.max() <= 0.6 + 0.01
    assert not (mask[0] == mask[1]).all()


def test_depends_on_an_images_key_alone():
    key = jax.random.key(1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
    whole = region_mask(key, IMAGES[:3])
    np.testing.assert_array_equal(jax.vmap(region_mask)(keys, IMAGES[:3]), whole)


def test_refuses_areas_that_are_no_shares():
    with pytest.raises(ValueError, match="area_range must be within 0 and 1"):
        region_mask(jax.random.key(0), IMAGES, area_range=(0.5, 1.5))
