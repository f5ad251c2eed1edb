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


def locate_backbone(names: Sequence[str], folder: Path | None = None) -> tuple[str, Path]:
    """Finds one of several networks: in the folder, else in the cache, else on the Hub, each in the order of names.

    Args:
        names: of `BACKBONES`, the best first; only the first is downloaded.
        folder: of safetensors files; the environment variable SAPNET_BACKBONES names it otherwise.

    Returns:
        The name of the network that was found and the path of its weights.

    Raises:
        CheckpointError: none is to be had, with what to do about it; or the folder does not exist.
    """
    if folder is None and (named := os.environ.get(FOLDER_VARIABLE)):
        folder = Path(named)
    if folder is not None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: the folder of backbones does not exist")
        for name in names:
            for file in BACKBONES[name].files:
                if (folder / file).is_file():
                    return name, folder / file

    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for name in names:
        cached = try_to_load_from_cache(BACKBONES[name].repository, HUB_FILE)
        if isinstance(cached, str):
            return name, Path(cached)
    wanted = BACKBONES[names[0]]
    try:
        return wanted.name, Path(hf_hub_download(wanted.repository, HUB_FILE))
    except LocalEntryNotFoundError:
        reason = "the Hub cannot be reached"
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
    where = f"{folder} has no {' or '.join(f'{name}.safetensors' for name in names)}, and " if folder else ""
    raise CheckpointError(
        f"{where}{wanted.repository} is not in the cache and did not come from the Hub ({reason}); put "
        f"{wanted.files[0]} into a folder and name it with --backbones or {FOLDER_VARIABLE}, or switch the loss off"
    )
