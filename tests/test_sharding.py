import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bvit import sharding


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = sharding.make_mesh(data=2, fsdp=-1, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (4, 1, 1)])
def test_a_mesh_that_does_not_fit_is_an_error(sizes):
    data, fsdp, tensor = sizes
    with pytest.raises(ValueError, match=f"mesh.data={data}, mesh.fsdp={fsdp}"):
        sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def test_batches_must_be_shared_evenly():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    sharding.check_batch(16, mesh, name="train.batch_size")
    with pytest.raises(ValueError, match="8 devices.*got 12; use 8 or 16"):
        sharding.check_batch(12, mesh, name="train.batch_size")
    with pytest.raises(ValueError, match="got 3; use 8\\."):
        sharding.check_batch(3, mesh, name="train.batch_size")


def test_large_parameters_are_split_over_fsdp_and_small_ones_are_not():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    state = {
        "params": {"kernel": jnp.zeros((64, 128)), "odd": jnp.zeros((63, 65))},
        "bias": jnp.zeros(128),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, mesh))
    assert specs["params"]["kernel"] == P(None, "fsdp")
    assert specs["params"]["odd"] == P(None, None)
    assert specs["bias"] == P(None)


def test_bytes_of_a_device_are_those_of_its_shards():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    state = {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)}
    places = sharding.state_shardings(state, mesh)
    placed = jax.device_put(state, places)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert sharding.bytes_per_device(state, places) == held == 64 * 128 + 128 * 4


def test_per_image_functions_run_on_each_devices_own_images():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    image = jnp.arange(16.0).reshape(16, 1)
    fn = jax.jit(sharding.per_image(lambda x: x - x.mean(), mesh))
    # Were the mean over the whole batch, only the middle would be near zero.
    np.testing.assert_allclose(fn(image).ravel(), np.tile([-0.5, 0.5], 8))
