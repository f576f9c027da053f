"""Runs a function in a process of its own, which may crash, hang, or use too much memory."""

import contextlib
import multiprocessing
import resource
import sys
import traceback

import pytest

# A call that takes longer hangs; the slowest takes a fraction of a second.
SECONDS = 120
MOST_BYTES = 10**9
# ru_maxrss is in kB on Linux, in bytes on macOS.
UNIT = 1 if sys.platform == "darwin" else 1024

_context = multiprocessing.get_context("spawn")


class Watched:
    """Calls a function of a module; a failure of its process is an error here."""

    def __init__(self, function):
        self._function, self._process = function, None

    def __call__(self, *arguments):
        if self._process is None:
            self._pipe, theirs = _context.Pipe()
            self._process = _context.Process(
                target=_serve, args=(self._function, theirs), daemon=True
            )
            self._process.start()
            theirs.close()
        self._pipe.send(arguments)
        if not self._pipe.poll(SECONDS):
            self.close()
            raise AssertionError(f"no answer after {SECONDS} s")
        try:
            result, error, memory = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise AssertionError(f"the process ended with {code}") from None
        if memory > MOST_BYTES:
            self.close()  # the peak is that of the process: the next call gets another one
            raise AssertionError(f"{memory:,} bytes of memory")
        assert not error, error
        return result

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def fixture(function):
    """A fixture of a module: the function, called in a process that its tests share."""

    @pytest.fixture(scope="module")
    def watched():
        with contextlib.closing(Watched(function)) as found:
            yield found

    return watched


def _serve(function, pipe):
    start = _peak()
    while True:
        result = error = None
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            result = function(*arguments)
        except BaseException:
            error = traceback.format_exc()
        pipe.send((result, error, _peak() - start))


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
