"""The mesh of devices, and the one table that says what is placed where on it.

Axes: `data` splits the batch; `fsdp` splits the batch and every large parameter with its optimizer
state (Rajbhandari et al. 2020, ZeRO stage 3); `tensor` splits the heads and hidden units of the ViT
(Shoeybi et al. 2019). Nothing else in the project names a mesh axis.
"""

import collections
import math
import re
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

BATCH_AXES = ("data", "fsdp")

# (pattern of the parameter's path, dimension split over `tensor`). The first that matches wins;
# optimizer moments and averages match too, since their paths end in the parameter's own.
TENSOR_RULES: tuple[tuple[str, int], ...] = (
    (r"attn/qkv/kernel$", 2),  # [width, 3, heads, head_dim]: each device has whole heads …
    (r"attn/qkv/bias$", 1),
    (r"attn/proj/kernel$", 0),  # … and projects its own; one sum over devices follows
    (r"mlp/fc1/kernel$", 1),  # [width, hidden]: each device has some hidden units …
    (r"mlp/fc1/bias$", 0),
    (r"mlp/fc2/kernel$", 0),  # … and likewise one sum follows
)

# Below this many elements, 1 MiB in float32, a parameter is kept whole on every device. A message
# then takes as long to start as to send: about 5 µs over links of 200 GB/s. And there is little to
# save: 0.3 % of a ViT-B, 6 % of a ResNet-50.
MIN_FSDP_ELEMENTS = 2**18

# What the forward pass keeps where parameters are split: that which costs operations, or messages
# (a batch's statistics), to make again. Fused attention is a custom_vjp_call.
KEPT = (
    "dot_general",
    "conv_general_dilated",
    "custom_vjp_call",
    "random_bits",
    "reduce_sum",
    "reduce_max",
)


def make_mesh(
    *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list | None = None
) -> Mesh:
    """Builds the mesh (data, fsdp, tensor); one size may be -1, which takes what is left.

    The devices are laid out so that `tensor`, which sends most, has the fastest links, and then
    `fsdp`. Where they are in several slices with a slower network between them (TPU slices, GPU
    hosts), `data` reaches over slices first, and `fsdp` only where `data` is too small for that.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ValueError(
            f"mesh sizes are positive, and at most one is -1 (all that is left): got {wanted}."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"the mesh must use every device: got {wanted} on {len(devices)} devices; "
            "choose sizes whose product is that, or leave mesh.data=-1."
        )
    return Mesh(
        _lay_out(devices, tuple(sizes.values())), tuple(sizes), axis_types=(AxisType.Auto,) * 3
    )


def _lay_out(devices: list, shape: tuple[int, ...]) -> np.ndarray:
    """Places devices in a mesh whose last axes send most, by the network that they form."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    between = []  # how often each axis steps from slice to slice: the first ones, as far as they go
    for size in shape:
        between.append(math.gcd(size, slices))
        slices //= between[-1]
    within = [size // steps for size, steps in zip(shape, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def check_batch(batch_size: int, mesh: Mesh, *, name: str, accumulate: int = 1) -> None:
    """Raises a ValueError unless the devices can share a batch, in `accumulate` parts, evenly."""
    if accumulate < 1:
        raise ValueError(f"train.accumulate must be at least 1: got {accumulate}; 1 is off.")
    shares, parts = batch_shares(mesh) * accumulate, f", in {accumulate} parts each"
    if batch_size < 1 or batch_size % shares:
        below = max(0, batch_size) // shares * shares
        fits = " or ".join(str(size) for size in (below, below + shares) if size > 0)
        raise ValueError(
            f"{name} must be a multiple of the {batch_shares(mesh)} devices that share a batch"
            f"{parts if accumulate > 1 else ''}: got "
            f"{batch_size}; use {fits}."
        )


def batch_shares(mesh: Mesh) -> int:
    """Number of pieces that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of anything whose first axis is the batch."""
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(
    batch_size: int, mesh: Mesh, devices: Collection[jax.Device] | None = None
) -> list[int]:
    """The rows of a batch that some devices hold, ascending; by default, those of this process.

    Processes hold the same rows where a `tensor` axis reaches over them.
    """
    devices = mesh.local_devices if devices is None else devices
    held = batch_sharding(mesh).devices_indices_map((batch_size,))
    rows = {row for device in devices for row in range(batch_size)[held[device][0]]}
    return sorted(rows)


def put_rows(rows: PyTree, mesh: Mesh) -> PyTree:
    """Lays arrays of this process's `local_rows` on its devices, as arrays over all processes."""
    place, shares = batch_sharding(mesh), batch_shares(mesh)
    held = len(local_rows(shares, mesh))

    def put(x: np.ndarray) -> Array:
        shape = (len(x) * shares // held, *x.shape[1:])
        return jax.make_array_from_process_local_data(place, x, shape)

    return jax.tree.map(put, rows)


def get_rows(array: Array) -> np.ndarray:
    """The rows of a batch that each device of this process holds, device by device, on the host.

    Devices that share rows, along `tensor`, each give them; so all processes get equally many.
    """
    return np.concatenate(jax.device_get([shard.data for shard in array.addressable_shards]))


def put_whole(rows: np.ndarray, mesh: Mesh) -> Array:
    """Lays rows that every process has on the devices, as batches are laid."""
    return put_rows(rows[local_rows(len(rows), mesh)], mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """Placement of what every device holds whole."""
    return NamedSharding(mesh, P())


def per_image(fn: Callable, mesh: Mesh) -> Callable:
    """Runs `fn`, which treats each image on its own, on each device's own images.

    Without this the compiler could not know that loops over the batch inside `fn` need no
    neighbour, and would gather the batch first.
    """
    return jax.shard_map(fn, mesh=mesh, in_specs=P(BATCH_AXES), out_specs=P(BATCH_AXES))


def microbatches(batch: PyTree, count: int, mesh: Mesh) -> PyTree:
    """Cuts arrays [n, …] into [count, n/count, …], row r going to part r % count.

    So each device cuts the rows that it has, and which rows make up a part does not depend on how
    many devices there are.
    """
    place = NamedSharding(mesh, P(None, BATCH_AXES))

    def cut(rows: Array) -> Array:
        parts = jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0)
        return jax.lax.with_sharding_constraint(parts, place)

    return jax.tree.map(cut, batch)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    axes: list[str | None] = [None] * len(shape)
    for pattern, dim in TENSOR_RULES:
        if re.search(pattern, path):
            if shape[dim] % mesh.shape["tensor"] == 0:
                axes[dim] = "tensor"
            break
    if math.prod(shape) >= MIN_FSDP_ELEMENTS:
        divisible = [
            d for d, n in enumerate(shape) if axes[d] is None and n % mesh.shape["fsdp"] == 0
        ]
        if divisible:
            axes[max(divisible, key=lambda d: shape[d])] = "fsdp"
    return P(*axes)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Placement of every leaf of a training state (arrays or their shapes), by the rules above."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh)
        ),
        state,
    )


def abstract(state: PyTree, mesh: Mesh) -> PyTree:
    """Shape, dtype and placement of every leaf of a training state, by the rules above."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        state_shardings(state, mesh),
    )


def gather_at_use(fn: Callable, mesh: Mesh) -> Callable:
    """Makes `fn(params)` gather each parameter where it is used, forwards and again backwards.

    Left to itself, the compiler may gather activations instead where that needs fewer bytes, and
    keeps what it gathered from the forward pass to the backward one: a whole copy of the parameters
    on every device, which is what `fsdp` is there to avoid. So here the gathered copies are not
    among what the forward pass keeps, nor is anything else that is cheap to make again.
    """
    if mesh.shape["fsdp"] == 1:
        return fn

    def gathered(params: PyTree) -> PyTree:
        places = state_shardings(params, mesh)
        whole = jax.tree.map(lambda place: NamedSharding(mesh, _without_fsdp(place.spec)), places)
        return fn(jax.lax.with_sharding_constraint(params, whole))

    return jax.checkpoint(gathered, policy=lambda primitive, *_, **__: primitive.name in KEPT)


def _without_fsdp(spec: P) -> P:
    return P(*(None if axis == "fsdp" else axis for axis in spec))


def describe(state: PyTree, mesh: Mesh) -> str:
    """Says what of a state is split over which axes, in megabytes of the whole."""
    shardings = state_shardings(state, mesh)
    split = collections.Counter()
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        axes = [axis for axis in mesh.axis_names if axis in place.spec and mesh.shape[axis] > 1]
        split[" and ".join(axes)] += leaf.size * leaf.dtype.itemsize
    parts = [f"{size / 1e6:.1f} MB over {axes}" for axes, size in split.items() if axes]
    held, whole = bytes_per_device(state, shardings) / 1e6, split.total() / 1e6
    if mesh.size == 1:
        return f"{whole:.1f} MB"
    return f"{held:.1f} MB of {whole:.1f} MB on each device; split: {', '.join(parts) or 'nothing'}"


def bytes_per_device(state: PyTree, shardings: PyTree) -> int:
    """Bytes of `state` that one device holds under `shardings`."""

    def held(leaf: Array | jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, state, shardings)))
