import dataclasses
import functools

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from bvit import models, sharding


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = sharding.make_mesh(data=2, fsdp=-1, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@dataclasses.dataclass(frozen=True)
class Chip:
    """Stands for a device of a machine with several slices."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "chip"


@pytest.mark.parametrize(
    ("sizes", "slices_along"),
    [
        # The axes along which one steps from a slice to another.
        ({"data": 2, "fsdp": 4}, {"data"}),
        ({"data": 4, "tensor": 2}, {"data"}),
        ({"data": 1, "fsdp": 8}, {"fsdp"}),
        ({"data": 1, "fsdp": 4, "tensor": 2}, {"fsdp"}),
    ],
)
def test_slower_networks_are_crossed_along_the_axes_that_send_least(sizes, slices_along):
    # Listed by turns, as a cluster may.
    chips = [Chip(i, slice_index=i % 2) for i in range(8)]
    mesh = sharding.make_mesh(devices=chips, **sizes)
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    for dim, axis in enumerate(("data", "fsdp", "tensor")):
        halves = np.split(slices, 2, axis=dim) if slices.shape[dim] > 1 else [slices, slices]
        assert (not np.array_equal(*halves)) == (axis in slices_along), axis


def test_rows_are_those_of_the_devices_in_whatever_order_they_are():
    devices = np.array(jax.devices())
    order = [0, 4, 2, 6, 1, 5, 3, 7]
    mesh = Mesh(devices[order].reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    rows = functools.partial(sharding.local_rows, 16, mesh)
    assert rows() == list(range(16))
    assert rows(devices[:2]) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert rows(devices[[1, 5]]) == [8, 9, 10, 11]


def test_rows_come_back_from_every_device():
    mesh = sharding.make_mesh(data=2, tensor=4)
    placed = sharding.put_rows({"label": np.arange(6)}, mesh)["label"]
    assert placed.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(placed, np.arange(6))
    assert sharding.get_rows(placed).tolist() == 4 * [0, 1, 2] + 4 * [3, 4, 5]


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


def test_of_a_large_network_the_matrices_are_split_and_nothing_else(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_FSDP_ELEMENTS", conftest.MIN_FSDP_ELEMENTS)
    init = functools.partial(models.create("vit_large_patch16_224", depth=1).init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    places = sharding.state_shardings(params, sharding.make_mesh(fsdp=8))
    split = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, place in jax.tree.leaves_with_path(places)
        if "fsdp" in place.spec
    }
    block = {f"blocks_0/{name}/kernel" for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")}
    assert split == block | {"patch_embed/kernel", "head/kernel"}


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
