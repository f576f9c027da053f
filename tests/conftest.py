"""Eight CPU devices for every test, so that sharding is exercised on any machine."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Set before jax is imported: what they say is fixed once it is. Most of the tests' time is spent in
# the compiler, and LLVM's optimisations are half of that: they do nothing for arrays this small.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
