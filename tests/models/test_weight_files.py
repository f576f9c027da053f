"""Weight files: what is read, and what is refused with nothing executed."""

import io
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from bvit.models import weight_files

ARRAYS = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


class Bomb:
    """Unpickling it writes a file, as any code could."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def _save(path):
    save_file(ARRAYS, path) if path.suffix == ".safetensors" else np.savez(path, **ARRAYS)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_arrays_come_back_as_they_were(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    _save(path)
    arrays = weight_files.read(path)
    assert set(arrays) == set(ARRAYS)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype


def test_bfloat16_is_read(tmp_path):
    save_file({"a": np.asarray(jnp.full(3, 1.5, jnp.bfloat16))}, tmp_path / "w.safetensors")
    assert (
        weight_files.read(tmp_path / "w.safetensors")["a"].astype(np.float32).tolist() == [1.5] * 3
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"weights{suffix}"
    _save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=f"weights{suffix} is truncated or not a {suffix} file"):
        weight_files.read(path)


def test_pickled_objects_in_an_npz_are_refused_and_nothing_runs(tmp_path):
    bomb = np.array([Bomb(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "weights.npz", bomb=bomb)
    with pytest.raises(ValueError, match="holds pickled objects, which could run code"):
        weight_files.read(tmp_path / "weights.npz")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_not_touched_without_torch(tmp_path, no_torch):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ValueError, match="can run code.*convert the file(.|\n)*save_file"):
        weight_files.read(path)
    assert not (tmp_path / "ran").exists()


def test_a_torch_whose_weights_only_is_unsafe_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cpu"))
    with pytest.raises(ValueError, match="needs torch 2.6 or newer: got 2.5.1"):
        weight_files.read(tmp_path / "weights.pth")


def test_a_pickle_with_code_in_it_is_refused_by_torch_and_nothing_runs(tmp_path):
    torch = pytest.importorskip("torch")
    bare, zipped = tmp_path / "bare.pth", tmp_path / "zipped.pth"
    bare.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    torch.save({"a": Bomb(tmp_path / "ran")}, zipped)
    for path in (bare, zipped):
        with pytest.raises(ValueError, match="pickle of more than tensors, and was not read"):
            weight_files.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_state_dict_is_read_by_torch(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    state = {"a": torch.ones(2, 3), "b": torch.full((2,), 1.5, dtype=torch.bfloat16)}
    torch.save(wrap(state), path)
    arrays = weight_files.read(path)
    np.testing.assert_array_equal(arrays["a"], np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(arrays["b"], np.float32([1.5, 1.5]))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is truncated"):
        weight_files.read(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="must hold a state dict"):
        weight_files.read(path)


def test_other_kinds_of_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of .safetensors, .npz, .pth.*weights.h5"):
        weight_files.read(tmp_path / "weights.h5")


def test_a_path_resolves_to_itself(tmp_path):
    path = tmp_path / "weights.npz"
    path.touch()
    assert weight_files.resolve(str(path)) == path
    with pytest.raises(ValueError, match="no weight file at .*nowhere.npz"):
        weight_files.resolve(tmp_path / "nowhere.npz")


@pytest.fixture
def hub(monkeypatch):
    """A hub that remembers what was asked of it."""
    asked = []

    def hf_hub_download(repository, file):
        asked.append((repository, file))
        return f"/cache/{file}"

    module = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_hub_address_is_downloaded(hub):
    path = weight_files.resolve("hf:timm/resnet50.tv_in1k")
    assert str(path) == "/cache/model.safetensors"
    weight_files.resolve("hf:owner/name/folder/file.npz")
    assert hub == [
        ("timm/resnet50.tv_in1k", "model.safetensors"),
        ("owner/name", "folder/file.npz"),
    ]


@pytest.mark.parametrize("address", ["hf:resnet50", "hf:", "hf:/name"])
def test_half_a_hub_address_is_refused(hub, address):
    with pytest.raises(ValueError, match="named hf:owner/name"):
        weight_files.resolve(address)


def test_without_huggingface_hub_it_says_how_to_go_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub.*give its path"):
        weight_files.resolve("hf:timm/resnet50.tv_in1k")


def test_without_a_network_it_says_how_to_go_on(monkeypatch):
    def hf_hub_download(repository, file):
        raise ConnectionError("no route to host")

    module = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    with pytest.raises(ValueError, match="could not download .*no route to host.*give its path"):
        weight_files.resolve("hf:timm/resnet50.tv_in1k")


def test_numbers_that_numpy_lacks_are_refused(tmp_path):
    header = b'{"a": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}'
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="not a .safetensors file of arrays: .*float8"):
        weight_files.read(tmp_path / "w.safetensors")


def npz(arrays):
    """An archive of raw .npy contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(shape, content=b""):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (npz({"a": npy((10**12,))}), "claims another size than it has"),
        (npz({"a": npy((10**30,))}), "claims another size than it has"),
        (npz({"a": npy((-1,), b"0000")}), "claims another size than it has"),
        (npz({"a": npy((10**6,), bytes(4 * 10**6))}), "bytes claim to hold 4,000,0"),
        (npz({"a": npy((99,), bytes(396))})[:60] + npz({"a": npy((99,), bytes(396))})[61:], ""),
    ],
    ids=["too large", "larger than integers", "negative", "bomb", "a byte is missing"],
)
def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path, content, why):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(ValueError, match=f"not a .npz file of arrays: .*{why}"):
        weight_files.read(tmp_path / "weights.npz")


def test_a_tensor_that_repeats_one_number_without_end_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(1, dtype=torch.float16).expand(10**12)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="claim to hold 2,000,000,000,000"):
        weight_files.read(tmp_path / "w.pth")
