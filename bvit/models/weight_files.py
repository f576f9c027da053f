"""Weight files as named arrays, read without running code in them."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bvit import npz

HUB_PREFIX = "hf:"
HUB_EXAMPLE = "hf:timm/resnet50.tv_in1k"
HUB_FILE = "model.safetensors"

# In older versions torch.load could run code in spite of weights_only (CVE-2025-32434).
SAFE_TORCH = (2, 6)

# Weights hardly compress: what claims to be so many times as large as its file is a trap.
MOST_EXPANSION = 100

# Names of the weights in checkpoints of training scripts.
WEIGHT_ENTRIES = ("state_dict", "model")

CONVERT_COMMAND = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    'save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" '
    "weights.pth weights.safetensors"
)


def resolve(init_from: str | Path) -> Path:
    """The local file that `init_from` names, downloaded first if it is on the Hugging Face hub.

    Args:
      init_from: a path, or "hf:owner/name" for that repository's model.safetensors, or
        "hf:owner/name/file" for another file of it.

    Raises:
      ValueError: there is no such file, or it could not be downloaded.
      ImportError: it is on the hub, and huggingface_hub is not installed.
    """
    if str(init_from).startswith(HUB_PREFIX):
        return _download(str(init_from))
    path = Path(init_from).expanduser()
    if not path.is_file():
        raise ValueError(
            f"no weight file at {path}; give the path of a {', '.join(READERS)} file, or a "
            f"repository on the Hugging Face hub like {HUB_EXAMPLE}."
        )
    return path


def _download(address: str) -> Path:
    owner, name, *file = [*address.removeprefix(HUB_PREFIX).split("/", 2), ""][:3]
    if not owner or not name:
        raise ValueError(f"hub weights are named hf:owner/name, like {HUB_EXAMPLE}: got {address}.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"downloading {address} needs huggingface_hub; install it (pip install "
            "huggingface_hub), or download the file yourself and give its path."
        ) from error
    repository, file_name = f"{owner}/{name}", file[0] or HUB_FILE
    try:
        # Of no pinned revision: whatever is there is read without running code.
        return Path(huggingface_hub.hf_hub_download(repository, file_name))
    # The errors of its HTTP library differ between versions.
    except Exception as error:
        raise ValueError(
            f"could not download {address}: {error}; check the name and the network, or download "
            "the file elsewhere and give its path."
        ) from error


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weight file by name.

    Args:
      path: a .safetensors or .npz file, or one of PyTorch's (.pth, .pt, .bin), which is a pickle:
        it is read only by a torch that is installed, and with `weights_only=True`.

    Raises:
      ValueError: the file is of another kind, truncated or otherwise broken, or holds more than
        arrays; or it is PyTorch's, and no safe torch is installed.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"a weight file is one of {', '.join(READERS)}: got {path}.")
    return READERS[path.suffix](path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(f"reading {path} needs safetensors: pip install safetensors.") from error

    try:
        return load_file(path)
    except Exception as error:  # also for types that NumPy lacks
        raise _broken(path, error) from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        _check_expansion(path)
        return npz.read(path)
    except (ValueError, RuntimeError, zipfile.BadZipFile) as error:  # of another version, encrypted
        raise _broken(path, error) from error


def _check_expansion(path: Path) -> None:
    """Raises a ValueError for an archive that claims to hold far more than weights compress by."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_claim(path, sum(info.file_size for info in archive.infolist()))


def _check_claim(path: Path, claimed: int) -> None:
    if claimed > MOST_EXPANSION * path.stat().st_size:
        raise ValueError(f"its {path.stat().st_size:,} bytes claim to hold {claimed:,}")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read. Install torch, whose "
            "weights_only mode reads it safely, or convert the file where torch is installed:\n"
            f"  {CONVERT_COMMAND}"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise ValueError(
            f"reading {path} safely needs torch {'.'.join(map(str, SAFE_TORCH))} or newer: got "
            f"{torch.__version__}; upgrade torch, or give a .safetensors file."
        )
    try:
        _check_expansion(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # UnpicklingError for a pickle of more than tensors, RuntimeError and others for broken files.
    except Exception as error:
        raise ValueError(
            f"{path} is truncated, or is a pickle of more than tensors, and was not read: {error}"
        ) from error
    for entry in WEIGHT_ENTRIES:
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise ValueError(
            f"{path} must hold a state dict, names to tensors: got {type(content).__name__}; "
            "save it with torch.save(model.state_dict(), path)."
        )
    try:
        # A tensor may repeat one number as often as it likes.
        _check_claim(path, sum(one.numel() * one.element_size() for one in content.values()))
        return {str(name): _to_numpy(tensor) for name, tensor in content.items()}
    except (TypeError, RuntimeError, ValueError) as error:  # sparse, quantised, without numbers
        raise _broken(path, error) from error


def _to_numpy(tensor) -> np.ndarray:
    # NumPy has no bfloat16, and float32 holds all of its values.
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is truncated or not a {path.suffix} file of arrays: {error}; download it again."
    )


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
}
