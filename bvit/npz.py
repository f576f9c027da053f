"""Reads arrays from .npz files: without running code, in no more memory than the files hold."""

import math
import zipfile
from pathlib import Path

import numpy as np

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name.

    `numpy.load` allocates what an array's header claims, whatever the file holds.

    Raises:
      ValueError: the file is damaged, or holds more than plain arrays; the message says why.
      OSError: it can't be opened.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return {
                    info.filename.removesuffix(".npy"): _array(archive, info)
                    for info in archive.infolist()
                }
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds on broken bytes
            raise ValueError(str(error) or type(error).__name__) from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects, which could run code and are not read")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != (
            info.file_size - file.tell()
        ):
            raise ValueError(f"{info.filename} claims another size than it has")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
