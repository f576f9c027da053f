"""Main jobs in processes of their own, forked from one that has done the slow importing."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 200  # seconds after which a test gives a job up

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["bvit.main"])


class Job:
    """A main job under way."""

    def __init__(self, arguments, folder, *, devices=1, cache=None):
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        self._out.touch()
        self._err.touch()
        self._process = _server.Process(
            target=_main,
            args=(arguments, devices, str(cache), self._out, self._err),
            daemon=True,  # ends with the tests, however they end
        )
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

    def alive(self):
        return self._process.is_alive()

    def pause(self, seconds):
        """Waits so long, or until the job ends."""
        self._process.join(seconds)

    def wait(self, timeout=TIMEOUT):
        """Waits for the end; returns (exit code, stdout, stderr)."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
        return self._process.exitcode, *self.printed()


def _main(arguments, devices, cache, out, err):
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.chdir(ROOT)
    os.environ["XLA_FLAGS"] = xla_flags(devices)
    sys.argv = ["bvit.main", *arguments]

    import jax
    from absl import app

    import bvit.main

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    app.run(bvit.main.main, flags_parser=bvit.main.parse)


def xla_flags(devices):
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
