"""Says what a run needs of each device, before the devices are rented.

    python -m bvit.plan --config=configs/vit_mask.py:imagenet2012 --devices=v5e:4x4
    python -m bvit.plan --config=configs/finetune.py --devices=gpu:8xH100 --config.mesh.fsdp=8

It compiles the step that bvit.main would run, on a machine that has no such devices: for a TPU by
libtpu where that is installed (pip install libtpu), which is what a TPU does; otherwise by XLA's
CPU compiler for as many simulated devices. It reads neither images nor weights. docs/plan.md says
how to read what it prints.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bvit import config_flag, sharding
from bvit.arguments import EXIT_BAD_INPUT, fail
from bvit.evaluation.evaluator import make_classify
from bvit.evaluation.rows import NOTHING, align
from bvit.experiment import Experiment, assemble
from bvit.planning import chips, program
from bvit.planning.chips import Chip, Devices
from bvit.planning.program import Program
from bvit.training.loop import abstract_state, lower_step

DEVICES = flags.DEFINE_string(
    "devices", None, "What to rent: v5e:4x4, gpu:8xH100, or cpu:8 for simulated devices."
)
CLASSES = flags.DEFINE_integer("classes", 1000, "Classes of the data set, which is not read.", 1)

# A training set that is not read is taken to have as many images as ImageNet; the number only sets
# the constants of the learning rate.
TRAIN_IMAGES = 1_281_167
# An all-reduce sends what a reduce-scatter and an all-gather send.
SENT = {"all-reduce": 2}
EXIT_DOES_NOT_FIT = 1
# So that libtpu does not look for a TPU.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}
TOO_LARGE = re.compile(r"Used ([\d.]+)G of ([\d.]+)G")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one compiled function of a run needs on each device, in bytes.

    Attributes:
      name: the function, and its policy.
      parameters: and batch statistics.
      optimizer: its state, the average of the parameters and the number of the step.
      parts: microbatches of a batch.
      needs: of the program.
    """

    name: str
    parameters: int
    optimizer: int
    parts: int
    needs: Program

    @property
    def total(self) -> int:
        """All at once."""
        return self.needs.arguments + self.needs.temporaries

    @property
    def flops(self) -> float:
        """Operations of a step; those of a loop over parts were counted once."""
        return self.parts * self.needs.flops

    @property
    def traffic(self) -> float:
        """Bytes that a step reads and writes; likewise."""
        return self.parts * self.needs.traffic

    def seconds(self, chip: Chip, dtype: str, compiled_for_it: bool) -> dict[str, float]:
        """The least time that each part of a chip needs (Williams et al. 2009, "Roofline").

        Args:
          chip: the device.
          dtype: of the products.
          compiled_for_it: whether the program is the chip's own. Another compiler's reads and
            writes more, or less, and so says nothing of the memory.
        """
        messages = self.needs.messages.items()
        sent = sum(SENT.get(kind, 1) * some.nbytes for kind, some in messages)
        times = {"compute": self.flops / chip.peak[dtype], "messages": sent / chip.link}
        return times | ({"memory": self.traffic / chip.bandwidth} if compiled_for_it else {})


@dataclasses.dataclass(frozen=True)
class Unread:
    """A data set of which nothing is known but its size.

    Attributes:
      num_classes: how many classes.
    """

    num_classes: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(map(str, range(self.num_classes)))

    def __len__(self) -> int:
        """As many images as ImageNet."""
        return TRAIN_IMAGES

    def __getitem__(self, index: int) -> dict[str, object]:
        """Raises a LookupError."""
        raise LookupError("a plan reads no images.")

    def record_name(self, index: int) -> str:
        """Its number."""
        return str(index)


def main(argv: Sequence[str]) -> None:
    """Plans the experiment that the flags name."""
    logging.set_verbosity(logging.ERROR)
    config_flag.check(argv)
    try:
        if DEVICES.value is None:
            raise ValueError("--devices must say what to plan for, as v5e:4x4 or gpu:8xH100.")
        wanted = chips.parse(DEVICES.value)
        devices, compiler = find(wanted)
        experiment = outline(config_flag.CONFIG.value, CLASSES.value, devices)
    except ValueError as error:
        fail(str(error), EXIT_BAD_INPUT)
    mesh = ", ".join(f"{axis}={size}" for axis, size in experiment.mesh.shape.items())
    print(f"{config_flag.named()} on {wanted.text}, mesh {mesh}; compiled by {compiler}.\n")
    own = wanted.chip is None or devices[0].platform == "tpu"
    try:
        plans = list(make_plans(experiment))
    except jax.errors.JaxRuntimeError as error:
        too_large = TOO_LARGE.search(str(error))
        if not too_large:
            raise
        used, there = (float(size) * 2**30 for size in too_large.groups())
        fail(
            f"the program does not fit: it needs {used / 1e9:.1f} GB of {there / 1e9:.1f} GB on "
            f"each device; change {changes(experiment, used, 0, there)}.",
            EXIT_DOES_NOT_FIT,
        )
    print(table(plans, wanted, experiment, own))
    verdicts(plans, wanted, experiment, own)


def find(wanted: Devices) -> tuple[list, str]:
    """Devices to compile for, and the name of their compiler.

    Raises:
      ValueError: libtpu knows no such slice.
    """
    if wanted.is_tpu and importlib.util.find_spec("libtpu"):
        from jax.experimental import topologies

        os.environ |= NO_TPU
        jax.config.update("jax_platforms", "cpu")
        try:
            found = topologies.get_topology_desc(wanted.text, "tpu").devices
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            raise ValueError(f"libtpu knows no slice {wanted.text}: {error}") from None
        return list(found), f"libtpu {importlib.metadata.version('libtpu')}"
    flags_of_xla = (
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={wanted.count}",
        "--xla_backend_optimization_level=0",  # of the machine code, which never runs
    )
    os.environ["XLA_FLAGS"] = " ".join(flags_of_xla)
    jax.config.update("jax_platforms", "cpu")
    return jax.devices()[: wanted.count], f"XLA for {wanted.count} simulated CPU devices"


def outline(config: ConfigDict, classes: int, devices: list) -> Experiment:
    """The pieces of a run on given devices, without data and weights.

    Raises:
      ValueError: settings are wrong or do not fit together.
    """
    images = Unread(classes)
    return assemble(
        config, lambda c: (images if c.train.steps != 0 else None, None, images), devices
    )


def make_plans(experiment: Experiment) -> Iterator[Plan]:
    """Compiles the step of each policy that is trained; of a run that only evaluates, each pass."""
    state = abstract_state(experiment)
    parameters = _held({"params": state.params, **state.model_state})
    if experiment.total_steps:
        optimizer = _held((state.step, state.opt_state, state.ema_params))
        parts = experiment.config.train.accumulate
        for policy in experiment.train_policies:
            needs = program.read(lower_step(experiment, policy, state).compile())
            yield Plan(f"training, {policy.label}", parameters, optimizer, parts, needs)
        return
    c, mesh = experiment.config, experiment.mesh
    place = sharding.batch_sharding(mesh)
    shape = (c.eval.batch_size, c.data.image_size, c.data.image_size, 3)
    pixels = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
    index = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=place)
    for policy in experiment.policies:
        classify = make_classify(
            experiment.model,
            policy,
            mean=tuple(c.data.mean),
            std=tuple(c.data.std),
            seed=c.seed,
            mesh=mesh,
        )
        needs = program.read(classify.lower(state.eval_variables, pixels, index).compile())
        yield Plan(f"evaluation, {policy.label}", parameters, 0, 1, needs)


def _held(tree: PyTree) -> int:
    return sharding.bytes_per_device(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def table(plans: Sequence[Plan], devices: Devices, experiment: Experiment, own: bool) -> str:
    """What each device needs, a column for each plan."""
    c, chip = experiment.config, devices.chip
    batch = c.train.batch_size if experiment.total_steps else c.eval.batch_size
    kinds = [kind for kind in program.KINDS if any(kind in one.needs.messages for one in plans)]
    columns = []
    for plan in plans:
        needs = plan.needs
        rows = {
            "parameters": _mb(plan.parameters),
            "optimizer": _mb(plan.optimizer),
            "batch": _mb(needs.arguments - plan.parameters - plan.optimizer),
            "activations, gradients and scratch": ("" if own else "at most ")
            + _mb(needs.temporaries),
            "the largest of them": f"{_mb(needs.largest)}, {needs.largest_name}",
            "FLOPs of a step": f"{plan.flops / 1e12:.3g} T",
        }
        for kind in kinds:
            some = needs.messages.get(kind)
            rows[kind] = f"{_mb(some.nbytes)} in {some.count}" if some else NOTHING
        if chip:
            times = plan.seconds(chip, c.model.dtype, own)
            for name in ("compute", "memory", "messages"):
                rows[f"{name}, least time"] = _ms(times[name]) if name in times else NOTHING
            longest = max(times.values())
            rows["images/s, at most"] = f"{batch / longest:,.0f}"
        columns.append(rows)
    heading = ["on each device", *(plan.name for plan in plans)]
    return align([heading] + [[name, *(rows[name] for rows in columns)] for name in columns[0]])


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def verdicts(plans: Sequence[Plan], devices: Devices, experiment: Experiment, own: bool) -> None:
    """Prints whether the run fits, and what to change where it does not."""
    if devices.chip is None:
        return
    worst = max(plans, key=lambda plan: plan.total)
    there = devices.chip.memory
    what = f"{'' if own else 'at most '}{worst.total / 1e9:.1f} GB of {there / 1e9:.1f} GB"
    if worst.total <= there:
        print(f"\nIt fits: {what} on each device.")
        return
    state = worst.parameters + worst.optimizer
    print(
        f"\nIt {'does' if own else 'may'} not fit: {what} on each device. Change "
        f"{changes(experiment, worst.total - state, state, there)}."
    )


def changes(experiment: Experiment, temporaries: float, state: float, there: float) -> str:
    """The settings that make a program smaller, the most useful first."""
    c, mesh = experiment.config, experiment.mesh
    if not experiment.total_steps:
        return f"--config.eval.batch_size to {c.eval.batch_size // 2} or less"
    shares = sharding.batch_shares(mesh)
    found = []
    if mesh.shape["fsdp"] < shares and state > there / 4:
        found.append(f"--config.mesh.fsdp to {shares}, which splits parameters and optimizer")
    room = there - state
    rows = c.train.batch_size // shares
    parts = [k for k in range(2, rows + 1) if rows % k == 0 and k > c.train.accumulate]
    enough = [k for k in parts if temporaries * c.train.accumulate / k <= room]
    if parts:
        best = enough[0] if enough else parts[-1]
        found.append(f"--config.train.accumulate to {best}, which computes a batch in parts")
    if "remat" in c.model and not c.model.remat:
        found.append("--config.model.remat to True, which computes activations twice")
    if c.model.dtype == "float32":
        found.append("--config.model.dtype to bfloat16")
    return "; or ".join([*found, "--config.train.batch_size"])


if __name__ == "__main__":
    app.run(main, flags_parser=config_flag.parse)
