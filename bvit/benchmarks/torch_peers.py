"""What bvit computes, by PyTorch, timm and torchvision, where those are installed.

On a GPU networks compute in bfloat16, compiled, with fused attention; on a CPU in float32, eagerly.
"""

import copy
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bvit import models
from bvit.benchmarks.apart import Peers
from bvit.benchmarks.harness import Function, Unavailable
from bvit.training.step import AUX_WEIGHT

CLASSES = 1000


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


def network(name: str, batch: int, size: int, backend: str, options: Mapping[str, int]) -> Peers:
    """A network's "forward" pass, and its "forward and backward" pass, on random images.

    ViTs are timm's; CNNs are torchvision's, in channels_last.

    Args:
      name: a row of `bvit.models.MODELS`.
      batch: images.
      size: their side.
      backend: where JAX computes: "cpu" or "gpu".
      options: of the network, where bvit and the library give them the same names.

    Raises:
      Unavailable: the library is not there, or sees no GPU.
    """
    torch, device = _torch(backend)
    is_vit = models.is_vit(name)
    if is_vit:
        model = load("timm").create_model(name, pretrained=False, **options)
    else:
        options = {"init_weights": False} if name == "googlenet" else options
        model = getattr(load("torchvision").models, name)(weights=None, **options)
    layout = torch.contiguous_format if is_vit else torch.channels_last
    model = model.to(device, memory_format=layout)
    x = torch.randn((batch, 3, size, size), device=device).to(memory_format=layout)
    y = torch.randint(CLASSES, (batch,), device=device)
    half = torch.bfloat16 if device == "cuda" else torch.float32
    frozen = copy.deepcopy(model).to(half).eval()
    model.train()

    def infer(x: Any) -> Any:
        return frozen(x.to(half))

    def loss(x: Any, y: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return _loss(torch, model(x), y)

    if device == "cuda":
        infer, loss = torch.compile(infer), torch.compile(loss)

    def forward() -> None:
        with torch.inference_mode():
            infer(x)

    def backward() -> None:
        model.zero_grad(set_to_none=True)
        loss(x, y).backward()

    return _peers(torch, device, {"forward": forward, "forward and backward": backward})


def pixels(batch: int, size: int, patch_size: int, kernel_size: int, backend: str) -> Peers:
    """torchvision's "blur", image by image with a σ each, and the "variance" of a Laplacian.

    Args:
      batch: images.
      size: their side.
      patch_size: side of a patch; must divide `size`.
      kernel_size: taps of the blur.
      backend: where JAX computes: "cpu" or "gpu".

    Raises:
      Unavailable: the library is not there, or sees no GPU.
    """
    torch, device = _torch(backend)
    load("torchvision")
    blurred = importlib.import_module("torchvision.transforms.v2.functional").gaussian_blur
    images = torch.rand((batch, 3, size, size), device=device)
    sigmas = np.random.default_rng(0).uniform(1, 2, batch).tolist()
    luma = torch.tensor([0.299, 0.587, 0.114], device=device).mul(255)[:, None, None]
    cross = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=device)[None, None]

    def blur() -> None:
        torch.stack(
            [
                blurred(image, kernel_size, sigma)
                for image, sigma in zip(images, sigmas, strict=True)
            ]
        )

    def variance() -> None:
        grey = torch.nn.functional.pad((images * luma).sum(1, keepdim=True), [1] * 4, "reflect")
        edges = torch.nn.functional.conv2d(grey, cross)
        tiles = edges.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
        tiles.var(dim=(-2, -1), correction=0)

    return _peers(torch, device, {"blur": blur, "variance": variance})


def labels(name: str, root: Path, files: int, batch: int, workers: int) -> Function:
    """timm's labels of image files, which torch's DataLoader reads; on the CPU.

    Args:
      name: of a network of timm's; its weights are random.
      root: has a folder of images for each class.
      files: how many of them are classified.
      batch: images that run together.
      workers: processes that read.

    Raises:
      Unavailable: a library is not there.
    """
    torch, timm = load("torch"), load("timm")
    model = timm.create_model(name, pretrained=False).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = load("torchvision").datasets.ImageFolder(root, prepare)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(files)),
        batch_size=batch,
        num_workers=workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
    )

    def label() -> None:
        with torch.inference_mode():
            for pixels, _ in loader:
                model(pixels).softmax(-1).topk(5)

    return label


def _loss(torch: ModuleType, output: Any, labels: Any) -> Any:
    entropy = torch.nn.functional.cross_entropy
    if not isinstance(output, tuple):
        return entropy(output, labels)
    logits, *heads = output  # GoogLeNet's in training
    return entropy(logits, labels) + AUX_WEIGHT * sum(entropy(head, labels) for head in heads)


def _torch(backend: str) -> tuple[ModuleType, str]:
    torch = load("torch")
    if backend == "cpu":
        return torch, "cpu"
    if backend != "gpu" or not torch.cuda.is_available():
        raise Unavailable(f"torch has no {backend.upper()} here")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch, "cuda"


def _peers(torch: ModuleType, device: str, functions: dict[str, Callable[[], None]]) -> Peers:
    on_gpu = device == "cuda"
    return Peers(functions, torch.cuda.synchronize if on_gpu else lambda: None, on_gpu)
