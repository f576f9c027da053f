"""Main jobs in processes of their own, forked from one that has done the slow importing."""

import functools
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
TIMEOUT = 600  # seconds after which a test gives a job up

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["bvit.main"])


class Job:
    """A main job under way."""

    def __init__(self, arguments, folder, *, devices=1, cache=None, order=None, faults=None):
        """Starts it.

        Args:
          arguments: what is typed behind the command.
          folder: for what it prints.
          devices: how many the CPU stands for.
          cache: folder for compiled programs.
          order: of all devices in the mesh, where the machine's links make it another than that of
            the processes.
          faults: settings of `faults.c`, which needs `can_fail()`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        self._out.touch()
        self._err.touch()
        self._process = _server.Process(
            target=_main,
            args=(arguments, devices, str(cache), order, self._out, self._err, faults or {}),
            daemon=True,  # ends with the tests, however they end
        )
        with _preloaded():
            self._process.start()

    def kill(self, signum=signal.SIGKILL):
        os.kill(self._process.pid, signum)

    def wait_until(self, condition):
        """Waits until `condition()` holds; the job must not end before."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self._process.is_alive() and time.monotonic() < deadline, self.printed()
            time.sleep(0.01)

    def printed(self):
        return self._out.read_text(), self._err.read_text()

    def wait(self, timeout=TIMEOUT):
        """Waits for the end; returns (exit code, stdout, stderr)."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
        return self._process.exitcode, *self.printed()


@functools.cache
def _library():
    """The compiled `faults.c`; None without a compiler."""
    if sys.platform != "linux" or not (compiler := shutil.which("cc")):
        return None
    folder = tempfile.TemporaryDirectory()
    library, source = Path(folder.name, "faults.so"), ROOT / "tests" / "faults.c"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    return library, folder  # which is deleted with the last reference to it


def can_fail():
    """Whether the disk of a job can be made to fail."""
    return _library() is not None


def _preloaded():
    """The jobs' server is started by the first of them, and they are forked from it."""
    found = _library()
    return mock.patch.dict(os.environ, {"LD_PRELOAD": str(found[0])} if found else {})


def joined(arguments, folder, processes, **options):
    """Jobs that are the processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    return [
        Job([*arguments, *flags, f"--process_id={i}"], folder, **options) for i in range(processes)
    ]


def _main(arguments, devices, cache, order, out, err, faults):
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.chdir(ROOT)
    os.environ |= {f"FAULT_{name}": str(value) for name, value in faults.items()}
    os.environ["XLA_FLAGS"] = xla_flags(devices)
    sys.argv = ["bvit.main", *arguments]

    import jax
    import numpy as np
    from absl import app

    import bvit.config_flag
    import bvit.main
    from bvit import sharding

    sharding.MIN_FSDP_ELEMENTS = 2**12  # as in conftest.py
    if order:
        sharding.mesh_utils.create_device_mesh = lambda shape, devices, **_: np.reshape(
            [devices[i] for i in order], shape
        )
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    app.run(bvit.main.main, flags_parser=bvit.config_flag.parse)


def messages(err):
    """What a job printed to stderr, without its progress, and without a word of lost curves."""
    lines = err.replace("\x1b[A", "").replace("\r", "\n").splitlines()  # a bar below another
    others = "it/s]", "%|", "No more TensorBoard curves", "No TensorBoard curves"
    return [line for line in lines if line.strip() and not any(word in line for word in others)]


def xla_flags(devices):
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
