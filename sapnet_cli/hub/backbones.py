"""ImageNet networks that some losses look through: from a folder of the user's, the cache, or the Hub."""

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
        raise CheckpointError(f"{where}{error}; {advice}, or switch the loss off") from error


def _folder(folder: Path | None) -> Path | None:
    """The folder that is named, by the user or by the environment."""
    if folder is None and (named := os.environ.get(FOLDER_VARIABLE)):
        folder = Path(named)
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder}: the folder of backbones does not exist")
    return folder
