"""Eight CPU devices for every test, and bvit's signatures checked while it runs."""

import contextlib
import os

import beartype
import hypothesis
import jaxtyping
import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Set before jax is imported: what they say is fixed once it is. Most of the tests' time is spent in
# the compiler, and LLVM's optimisations are half of that: they do nothing for arrays this small.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax


def check_types(function):
    """Checks each call of a function against its signature; an int passes for a float."""
    if function.__name__ == "__init__":  # JAX fills pytrees with whatever it maps over them
        return function
    return beartype.beartype(function, conf=beartype.BeartypeConf(is_pep484_tower=True))


jaxtyping.Array = jax.Array | np.ndarray  # as functions of JAX take either
jaxtyping.install_import_hook("bvit", "conftest.check_types")

from bvit import sharding  # noqa: E402 (the hook comes first)

# The tests' networks are smaller than what is worth splitting, and are split none the less.
MIN_FSDP_ELEMENTS = sharding.MIN_FSDP_ELEMENTS
sharding.MIN_FSDP_ELEMENTS = 2**12

_raises = pytest.raises


@contextlib.contextmanager
def raises_without_type_checks(*args, **kwargs):
    """pytest.raises. What bvit says to wrong arguments must not be preceded by the type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with _raises(*args, **kwargs) as info:
            yield info
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


pytest.raises = raises_without_type_checks


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-examples",
        type=int,
        metavar="N",
        help="random inputs of each test in tests/fuzz, new ones each time; by default few, always "
        "the same",
    )


def pytest_configure(config):
    many = config.getoption("--fuzz-examples")
    shared = {
        "deadline": None,
        "database": None,
        "suppress_health_check": list(hypothesis.HealthCheck),
    }
    hypothesis.settings.register_profile("few", derandomize=True, **shared)
    hypothesis.settings.register_profile("many", max_examples=many or 1, print_blob=True, **shared)
    hypothesis.settings.load_profile("many" if many else "few")
