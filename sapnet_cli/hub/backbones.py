"""Networks that some losses and measures look through: from a folder of the user's, a cache, or the network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapnet_cli.errors import CheckpointError

FOLDER_VARIABLE = "SAPNET_BACKBONES"
HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Backbone:
    """One network and where it may lie.

    Attributes:
        name: what it is called here.
        repository: on the Hugging Face Hub.
        files: names in a folder of backbones, the likeliest first.
    """

    name: str
    repository: str
    files: tuple[str, ...]


def _backbone(name: str, *further: str) -> Backbone:
    repository = f"timm/{name}.tv_in1k"
    folders = (f"{name}.tv_in1k", repository, name)
    files = (
        f"{name}.safetensors",
        f"{name}.tv_in1k.safetensors",
        *further,
        *(f"{each}/{HUB_FILE}" for each in folders),
    )
    return Backbone(name, repository, files)


BACKBONES = {
    backbone.name: backbone
    for backbone in (_backbone("vgg16", "vgg16_features.safetensors"), _backbone("resnet101"), _backbone("resnet50"))
}


TORCHVISION_FILES = {
    "deeplabv3_resnet50": "deeplabv3_resnet50_coco-cd0a2569.pth",
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
}
"""Networks trained on COCO that torchvision hands out; each name ends with the beginning of the file's sha256."""

TORCHVISION_ADDRESS = "https://download.pytorch.org/models/"


def find_backbone(names: Sequence[str], folder: Path | None = None) -> tuple[str, Path] | None:
    """Looks for one of several networks without a network: in the folder, then in the Hub's cache.

    Args:
        names: of `BACKBONES`, the best first.
        folder: of safetensors files; the environment variable SAPNET_BACKBONES names it otherwise.

    Returns:
        The name of the network that was found and the path of its weights, or None.

    Raises:
        CheckpointError: the folder does not exist.
    """
    folder = _folder(folder)
    if folder is not None:
        for name in names:
            for file in BACKBONES[name].files:
                if (folder / file).is_file():
                    return name, folder / file

    from huggingface_hub import try_to_load_from_cache

    for name in names:
        cached = try_to_load_from_cache(BACKBONES[name].repository, HUB_FILE)
        if isinstance(cached, str):
            return name, Path(cached)
    return None


def locate_backbone(names: Sequence[str], folder: Path | None = None) -> tuple[str, Path]:
    """As `find_backbone`; what is not here comes from the Hub, the first of the names.

    Raises:
        CheckpointError: none is to be had, with what to do about it; or the folder does not exist.
    """
    if (found := find_backbone(names, folder)) is not None:
        return found

    from sapnet_cli.hub.download import download_from_hub

    wanted = BACKBONES[names[0]]
    try:
        return wanted.name, download_from_hub(wanted.repository, HUB_FILE)
    except CheckpointError as error:
        folder = _folder(folder)
        where = f"{folder} has no {' or '.join(f'{name}.safetensors' for name in names)}; " if folder else ""
        advice = f"or put {wanted.files[0]} into a folder and name it with --backbones or {FOLDER_VARIABLE}"
        raise CheckpointError(f"{where}{error}; {advice}, or leave out what needs it") from error


def locate_torchvision(name: str, folder: Path | None = None) -> Path:
    """The weights of a network of torchvision: in the folder, in torch's cache (TORCH_HOME), or fetched into that.

    Args:
        name: of `TORCHVISION_FILES`.
        folder: of weights; the environment variable SAPNET_BACKBONES names it otherwise.

    Raises:
        CheckpointError: they are not to be had, with what to do about it; or the folder does not exist.
    """
    import torch

    file = TORCHVISION_FILES[name]
    folder = _folder(folder)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for place in (cache,) if folder is None else (folder, cache):
        for path in (place / f"{name}.safetensors", place / file):
            if path.is_file():
                return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(TORCHVISION_ADDRESS + file, str(cache / file), hash_prefix=file[-12:-4])
    except (OSError, RuntimeError) as error:  # no connection; another digest than the name says
        raise CheckpointError(
            f"cannot fetch {TORCHVISION_ADDRESS}{file}: {getattr(error, 'reason', None) or error}; put {file} into a "
            f"folder and name it with --backbones or {FOLDER_VARIABLE}"
        ) from error
    return cache / file


def _folder(folder: Path | None) -> Path | None:
    """The folder that is named, by the user or by the environment."""
    if folder is None and (named := os.environ.get(FOLDER_VARIABLE)):
        folder = Path(named)
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder}: the folder of backbones does not exist")
    return folder
