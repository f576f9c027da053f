"""Images decoded whole and ahead of their use, within a bound on what waits in memory."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bvit.data.decode import Pixels, UnreadableImageError, decode
from bvit.data.headers import open_image

# Pixels that wait: 24 million are 72 MB, and a dozen images of 2 megapixels. A larger image
# waits alone.
PIXELS_AHEAD = 24_000_000

Picture = tuple[Path, Pixels | UnreadableImageError, Any]


@contextlib.contextmanager
def read_pictures(
    paths: Sequence[Path], then: Callable[[Pixels], Any]
) -> Generator[Iterator[Picture], None, None]:
    """Decodes images in threads, and does something with each there, while others are used.

    Args:
      paths: the files.
      then: what is done with the pixels; several threads call it at once.

    Yields:
      An iterator over each file, in order, with its uint8 RGB pixels or why there are none, and
      what `then` made of them (None where there are none).
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield _in_order(paths, pool, then)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(paths, pool, then):
    waiting: deque = deque()
    pending, ahead = deque(paths), 0
    while pending or waiting:
        while pending and (ahead < PIXELS_AHEAD or not waiting):
            path = pending[0]
            size = pixel_count(path)
            if waiting and ahead + size > PIXELS_AHEAD:
                break
            waiting.append((pending.popleft(), size, pool.submit(_do, path, then)))
            ahead += size
        path, size, future = waiting.popleft()
        ahead -= size
        yield path, *future.result()


def pixel_count(path: Path) -> int:
    """Pixels of an image, from its header alone; 0 if that can't be read."""
    try:
        with open_image(path) as image:
            return image.width * image.height
    except UnreadableImageError:  # `decode` will say what is wrong
        return 0


def _do(path, then):
    pixels = _read(path)
    return pixels, None if isinstance(pixels, UnreadableImageError) else then(pixels)


def _read(path: Path) -> Pixels | UnreadableImageError:
    try:
        return decode(path.read_bytes())
    except UnreadableImageError as error:
        return error
    except MemoryError:
        return UnreadableImageError("not enough memory for its pixels")
    except OSError as error:
        return UnreadableImageError(error.strerror or str(error))
