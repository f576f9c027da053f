"""The same networks by PyTorch, timm and torchvision, where those are installed."""

import contextlib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from bvit.benchmarks.harness import Function, Unavailable
from bvit.training.step import AUX_WEIGHT


def load(name: str) -> ModuleType:
    """Imports a library of PyTorch's world.

    Raises:
      Unavailable: it is not installed, or broken.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    except Exception as error:  # builds of torch and torchvision that do not fit fail in many ways
        raise Unavailable(f"{name} can't be imported ({error})") from error


def network(name: str, images: np.ndarray, labels: np.ndarray) -> tuple[Function, Function]:
    """A network's forward pass, and its forward and backward pass.

    ViTs are timm's, CNNs torchvision's in channels_last. On a GPU both compute in bfloat16 by
    autocast, on a CPU in float32.

    Args:
      name: a row of `bvit.models.MODELS`.
      images: float32 [n, h, w, 3].
      labels: int [n].

    Raises:
      Unavailable: the library is not there, or sees no GPU where JAX does.
    """
    torch = load("torch")
    is_vit = name.startswith("vit")
    device = _device(torch)
    if is_vit:
        model = load("timm").create_model(name, pretrained=False)
    else:
        options = {"init_weights": False} if name == "googlenet" else {}
        model = getattr(load("torchvision").models, name)(weights=None, **options)
    layout = torch.contiguous_format if is_vit else torch.channels_last
    model = model.to(device, memory_format=layout)
    x = torch.from_numpy(np.moveaxis(images, 3, 1).copy()).to(device, memory_format=layout)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    precision = _precision(torch, device)

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), precision():
            model(x)
        _wait(torch, device)

    def backward() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        with precision():
            loss = _loss(torch, model(x), y)
        loss.backward()
        _wait(torch, device)

    return forward, backward


def _loss(torch: ModuleType, output: Any, labels: Any) -> Any:
    entropy = torch.nn.functional.cross_entropy
    if not isinstance(output, tuple):
        return entropy(output, labels)
    logits, *heads = output  # GoogLeNet's in training
    return entropy(logits, labels) + AUX_WEIGHT * sum(entropy(head, labels) for head in heads)


def _device(torch: ModuleType) -> str:
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend != "gpu" or not torch.cuda.is_available():
        raise Unavailable(f"torch has no {backend.upper()} here")
    return "cuda"


def _precision(torch: ModuleType, device: str) -> Callable[[], Any]:
    if device == "cpu":
        return contextlib.nullcontext
    return lambda: torch.autocast(device, dtype=torch.bfloat16)


def _wait(torch: ModuleType, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
