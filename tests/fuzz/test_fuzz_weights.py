"""Hostile weight files are read or refused: nothing runs, and memory is bounded.

python -m pytest tests/fuzz/test_fuzz_weights.py --fuzz-examples=20000
"""

import contextlib
import importlib.util
import io
import json
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st
from mutations import ODD_NUMBERS, broken, few
from safetensors.numpy import save
from watched import fixture

from bvit.evaluation import answers
from bvit.models import weight_files

ARRAYS = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bn1.bias": np.ones(4, np.float16),
    "count": np.array(3),
}
NUMBERS = st.one_of(st.integers(-2, 9), st.sampled_from((*ODD_NUMBERS, 2**63, 10**30)))


class Trap:
    """Unpickling it writes a file, as any code could."""

    def __reduce__(self):
        return open, ("ran", "w")


def _npz(compressed=False):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **ARRAYS)
    return file.getvalue()


def _torch_files():
    yield pickle.dumps({"a": Trap()})
    if importlib.util.find_spec("torch"):
        import torch

        state = {"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "c": Trap()}
        for content in (
            state,
            {"state_dict": {"a": state["a"].expand(5, 2, 3)}},
            {"a": state["b"]},
        ):
            for new in (True, False):
                file = io.BytesIO()
                torch.save(content, file, _use_new_zipfile_serialization=new)
                yield file.getvalue()


@st.composite
def hostile_npz(draw):
    """An archive of arrays whose headers claim anything."""
    file = io.BytesIO()
    kind = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name in draw(
            st.lists(st.sampled_from(("a", "b", "index", "x|y", "../a")), unique=True)
        ):
            dtype = draw(st.sampled_from(("<f4", "<f8", "|O", "|V0", "<U4", ">i2", "f", "é")))
            shape = tuple(draw(st.lists(NUMBERS, max_size=4)))
            header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
            header = draw(st.sampled_from((header, header[:-3], "{" * 300, "open('ran', 'w')")))
            length = struct.pack("<H", len(header.encode()) + draw(st.sampled_from((0, 0, 0, 1))))
            version = draw(st.sampled_from((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\0")))
            content = draw(st.sampled_from((b"", bytes(16), bytes(10**6), pickle.dumps(Trap()))))
            magic = b"\x93NUMPY" + version + length
            archive.writestr(f"{name}.npy", magic + header.encode() + content)
    return file.getvalue()


@st.composite
def hostile_safetensors(draw):
    """Arrays whose header claims anything."""
    entries = {
        name: {
            "dtype": draw(st.sampled_from(("F32", "F16", "BF16", "F8_E4M3", "BOOL", "C64", "x"))),
            "shape": draw(st.lists(NUMBERS, max_size=3)),
            "data_offsets": draw(st.lists(NUMBERS, min_size=2, max_size=2)),
        }
        for name in draw(st.lists(st.sampled_from(("a", "b", "__metadata__"))))
    }
    header = json.dumps(entries).encode()
    length = draw(st.sampled_from((len(header), len(header), 0, len(header) + 1, 2**40, 2**64 - 1)))
    return struct.pack("<Q", length) + header + bytes(draw(st.sampled_from((0, 4, 16, 10**6))))


def read(suffix, data):
    """Reads a file in an empty folder; says what happened."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path(f"file{suffix}")
        path.write_bytes(data)
        outcome = "arrays"
        try:
            arrays = weight_files.read(path)
        except ValueError as error:
            assert "file" in str(error)
            outcome = "refused"
        else:
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
        if suffix == ".npz":
            try:
                answers.read(path)
            except ValueError as error:
                assert "is damaged" in str(error)
        assert [one.name for one in Path().iterdir()] == [path.name], "something ran"
    return outcome


watched = fixture(read)


FILES = {
    ".npz": st.one_of(broken([_npz(), _npz(compressed=True)]), hostile_npz()),
    ".safetensors": st.one_of(broken([save(ARRAYS)]), hostile_safetensors()),
    ".pth": broken(list(_torch_files())),
}


def test_what_is_broken_was_readable(watched):
    assert watched(".npz", _npz()) == watched(".npz", _npz(True)) == "arrays"
    assert watched(".safetensors", save(ARRAYS)) == "arrays"


@few(250)
@hypothesis.given(st.sampled_from(list(FILES)).flatmap(lambda s: st.tuples(st.just(s), FILES[s])))
def test_a_hostile_weight_file_is_read_or_refused(watched, file):
    suffix, data = file
    hypothesis.event(f"{suffix} {watched(suffix, data)}")
