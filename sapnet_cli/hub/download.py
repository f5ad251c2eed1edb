"""Fetching files of weights over the network; nothing is kept that is not what it should be."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sapnet_cli.errors import CheckpointError
from sapnet_cli.files import write_atomically
from sapnet_cli.hub import RegisteredWeights, Source, check_digest, check_weights
from sapnet_cli.hub.backbones import HUB_FILE, Backbone

REPOSITORY_VARIABLE, REPOSITORY = "SAPNET_HUB_REPO", "sapnet/sapnet-weights"
"""Our own weights on the Hub."""

DATASETS_VARIABLE, DATASETS = "SAPNET_DATA_REPO", "sapnet/derain-benchmarks"
"""The public sets on the Hub, a folder each by its title."""

GITHUB_VARIABLE, GITHUB = "SAPNET_GITHUB_ENDPOINT", "https://raw.githubusercontent.com"
"""Where files of GitHub repositories come from; a mirror can take its place."""

MAX_BYTES = 64 * 1024**2
TIMEOUT = 30.0

NOTHING_KEPT = "nothing was kept"


def download_from_hub(repository: str, file: str, revision: str | None = None, force: bool = False) -> Path:
    """Fetches a file through the Hub's client into its cache, or finds it there.

    Raises:
        CheckpointError: the Hub cannot be reached, has no such file, or sent another than it announced.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    name = f"{repository}/{file}"
    try:
        with _one_line():
            path = Path(hf_hub_download(repository, file, revision=revision, force_download=force))
            if force:
                announced = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision)).etag or ""
                if re.fullmatch("[0-9a-f]{64}", announced):
                    check_digest(path.read_bytes(), announced, f"{name} as it came", "fetch it again")
        return path
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: not in the cache, and the Hub cannot be reached; try again online") from error
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {str(error).strip().splitlines()[0]}") from error


@contextmanager
def _one_line() -> Iterator[None]:
    """Without the client's warnings, two for each of its attempts; what it raises in the end says it once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def download_dataset(repository: str, folder: str, revision: str | None = None, offline: bool = False) -> Path:
    """Fetches one folder of a dataset repository on the Hub into its cache.

    Args:
        repository: owner and name.
        folder: in it.
        revision: of the repository.
        offline: whether only the cache is looked into.

    Returns:
        The path of the repository's copy in the cache.

    Raises:
        CheckpointError: the Hub cannot be reached, or there is no such repository or folder.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{repository}/{folder}"
    try:
        with _one_line():
            path = Path(
                snapshot_download(
                    repository,
                    repo_type="dataset",
                    revision=revision,
                    allow_patterns=[f"{folder}/*"],
                    local_files_only=offline,
                )
            )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: not in the cache, and the Hub cannot be reached; try again online") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {str(error).strip().splitlines()[0]}") from error
    if not (path / folder).is_dir():
        raise CheckpointError(f"{repository} has no folder {folder}; name another repository with --repo")
    return path


def fetch_weights(
    weights: RegisteredWeights, folder: Path, repository: str | None = None, revision: str | None = None
) -> Path:
    """Fetches registered weights as safetensors, whatever they were released as.

    Args:
        weights: which.
        folder: where to; made if it is not there.
        repository: of our own weights on the Hub; SAPNET_HUB_REPO names it otherwise. If nobody does, those that come
            with sapnet are taken, where they are whole.
        revision: of that repository.

    Raises:
        CheckpointError: they cannot be had, or what came is not what is registered; nothing is kept then.
        OSError: the folder cannot be written.
    """
    file = weights.path.name
    if weights.source is None:
        content = _read_ours(weights, repository or os.environ.get(REPOSITORY_VARIABLE), revision)
    else:
        content = _convert(_download_released(weights.source), weights.name)
    check_digest(content, weights.sha256, f"{weights.name} as it came", NOTHING_KEPT)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / file, content)
    return folder / file


def _read_ours(weights: RegisteredWeights, repository: str | None, revision: str | None) -> bytes:
    """Our own weights, from the Hub where that is named or what came with sapnet is damaged."""
    if repository is None and revision is None:
        with suppress(CheckpointError):
            if path := verify_weights(weights):
                return path.read_bytes()
    return download_from_hub(repository or REPOSITORY, weights.path.name, revision).read_bytes()


def fetch_backbone(backbone: Backbone, folder: Path | None, revision: str | None = None, force: bool = False) -> Path:
    """Fetches an ImageNet network from the Hub into its cache and, if a folder is named, copies it there.

    Raises:
        CheckpointError: it cannot be had.
        OSError: the folder cannot be written.
    """
    path = download_from_hub(backbone.repository, HUB_FILE, revision, force)
    if folder is None:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / backbone.files[0], path.read_bytes())
    return folder / backbone.files[0]


def verify_weights(weights: RegisteredWeights, folder: Path | None = None) -> Path | None:
    """Hashes weights that are here again.

    Returns:
        Their path, or None if they are not here.

    Raises:
        CheckpointError: they are damaged.
    """
    path = weights.path if folder is None else folder / weights.path.name
    if not path.exists():
        return None
    check_weights(weights, path)
    return path


def _download_released(source: Source) -> bytes:
    """A file of a GitHub repository at a commit, checked against its sha256."""
    host = (os.environ.get(GITHUB_VARIABLE) or GITHUB).rstrip("/")
    address = f"{host}/{source.repository}/{source.commit}/{source.path}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:  # noqa: S310  # https, or the user's mirror
            content: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise CheckpointError(f"{address}: {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(f"{address}: cannot be reached ({reason}); try again online") from error
    check_digest(content, source.sha256, f"{address} as it came", NOTHING_KEPT)
    return content


def _convert(content: bytes, name: str) -> bytes:
    """A released PyTorch file as safetensors."""
    from sapnet_cli.model.checkpoint import load_checkpoint, save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        released, converted = Path(folder, f"{name}.pth"), Path(folder, f"{name}.safetensors")
        released.write_bytes(content)
        save_checkpoint(load_checkpoint(released), converted)
        return converted.read_bytes()
