"""Any leading batch axes: the traversal and the keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image import batching


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 4), (0,), (2, 1, 3)])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_map_images_is_a_loop_over_the_images(monkeypatch, batch, at_once):
    monkeypatch.setattr(batching, "VALUES_AT_ONCE", at_once * 4 * 5 * 3)
    image = np.random.default_rng(0).random((*batch, 4, 5, 3), np.float32)
    scale = np.arange(np.prod(batch, dtype=int), dtype=np.float32).reshape(batch)

    def function(one, factor):
        assert one.shape == (4, 5, 3)
        assert factor.shape == ()
        return {"scaled": one * factor, "sum": one.sum()}

    result = jax.jit(lambda *xs: batching.map_images(function, *xs))(image, scale)
    np.testing.assert_allclose(result["scaled"], image * scale[..., None, None, None])
    np.testing.assert_allclose(result["sum"], image.sum((-3, -2, -1)), rtol=1e-5)


def test_one_key_is_folded_with_each_images_place():
    key = jax.random.key(3)
    keys = batching.image_keys(key, (2, 3))
    assert keys.shape == (2, 3)
    data = jax.random.key_data(keys).reshape(6, -1)
    for i in range(6):
        np.testing.assert_array_equal(data[i], jax.random.key_data(jax.random.fold_in(key, i)))


def test_keys_that_are_already_one_each_are_used_as_they_are():
    for batch in [(), (2,), (2, 3)]:
        keys = jax.random.split(jax.random.key(1), batch)
        assert (batching.image_keys(keys, batch) == keys).all()


def test_raw_keys_are_the_same_as_typed_ones():
    raw, typed = jax.random.PRNGKey(7), jax.random.key(7)
    assert (batching.image_keys(raw, (3,)) == batching.image_keys(typed, (3,))).all()
    raws, typeds = jax.random.split(raw, 2), jax.random.split(typed, 2)
    assert (batching.image_keys(raws, (2,)) == batching.image_keys(typeds, (2,))).all()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "must be a PRNG key: got an array of int32"),
        (jnp.zeros(2), "must be a PRNG key: got an array of float32"),
        (jax.random.split(jax.random.key(0), 4), r"got keys of shape \(4,\) for images of batch"),
    ],
)
def test_other_keys_are_refused(key, message):
    with pytest.raises(ValueError, match=message):
        batching.image_keys(key, (3,))
