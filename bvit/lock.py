"""One process works in a run directory: a lock that outlives no crash, on any file system.

`flock` decides where it can: the kernel releases it when a process ends, however it ends. Network
file systems may keep it within one machine, or have none. So the lock file also holds a record of
its holder, who touches the file every `BEAT` seconds. The record of another machine counts until it
has been still for `STALE` seconds. Times are those of the file system, so that clocks may differ.
A holder that finds the record of another run in its place (it was suspended for long, say) ends.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from absl import logging

from bvit.config import read_json
from bvit.interrupt import leave

BEAT = 5.0  # seconds
STALE = 60.0  # seconds
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
EXIT_TAKEN_OVER = 1
KEYS = {"process", "host", "machine", "token"}  # of a record


class RunLock:
    """Holds a lock file until `release`."""

    def __init__(self, path: Path) -> None:
        """Locks, and waits up to `STALE` seconds if another machine's record may be a dead run's.

        Args:
          path: of the lock file, which is made if there is none.

        Raises:
          ValueError: another process holds it.
          OSError: it can't be written.
        """
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            self._record = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "machine": _machine(),
                "token": secrets.token_hex(8),
            }
            self._write(json.dumps(self._record))
        except BaseException:
            os.close(self._file)
            raise
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def release(self) -> None:
        """Lets others lock the file."""
        self._released.set()
        self._beats.join()
        with contextlib.suppress(OSError):
            if _read(self._path) == self._record:
                self._write("")
        os.close(self._file)

    def _lock(self) -> None:
        shared = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._taken(_read(self._path)) from error
        except OSError:  # there are no locks
            shared = False
        found = _read(self._path)
        if not found or (shared and found["machine"] == _machine()):
            return  # nobody's, or of a process that this kernel would know of
        os.utime(self._path.parent)  # now, by the clock that stamps the record
        before = self._path.stat().st_mtime
        still = self._path.parent.stat().st_mtime - before
        if still < STALE:
            logging.warning(
                "%s was in use by %s %.0f s ago; waiting up to %.0f s for a sign that it still is.",
                *(self._path.parent, _holder(found), still, STALE - still),
            )
        end = time.monotonic() + STALE - still
        while time.monotonic() < end:
            time.sleep(min(BEAT, STALE) / 5)
            now = _read(self._path)  # opens the file: network file systems then ask the server
            if not now:
                return
            if now != found or self._path.stat().st_mtime != before:
                raise self._taken(now)

    def _taken(self, record: dict[str, Any]) -> ValueError:
        return ValueError(
            f"another run ({_holder(record)}) is working in {self._path.parent}: wait for it, or "
            "choose another --workdir."
        )

    def _write(self, text: str) -> None:
        # In this order nobody finds it empty meanwhile.
        os.pwrite(self._file, text.encode(), 0)
        os.ftruncate(self._file, len(text.encode()))

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # the disk may come back
                found = _read(self._path)
                if found and found["token"] != self._record["token"]:
                    leave(
                        f"another run ({_holder(found)}) has taken over {self._path.parent}, since "
                        f"this one was still for {STALE:.0f} s: this one ends.",
                        EXIT_TAKEN_OVER,
                    )
                os.utime(self._path)


def _read(path: Path) -> dict[str, Any]:
    """The record of a lock file; {} if there is none, or one of an older bvit."""
    try:
        found = read_json(path)
    except (ValueError, FileNotFoundError):
        return {}
    return found if isinstance(found, dict) and found.keys() >= KEYS else {}


def _holder(record: dict[str, Any]) -> str:
    return f"process {record['process']} on {record['host']}" if record else "unknown"


def _machine() -> str:
    """What no two running machines share, and no two starts of one."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
