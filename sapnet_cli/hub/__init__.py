"""Weights by name: those that come with sapnet, and those that it knows where to fetch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sapnet_cli.errors import CheckpointError

DEFAULT_WEIGHTS = "sapnet-general"

PACKAGED = Path(__file__).resolve().parents[1] / "weights"  # in the wheel
CHECKOUT = Path(__file__).resolve().parents[2] / "weights"

CACHE_VARIABLE = "SAPNET_CACHE"

HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class Source:
    """Where the authors of a paper released weights.

    Attributes:
        repository: owner and name on GitHub.
        commit: the state of the repository.
        path: of the file in it.
        sha256: of that file, in hexadecimal.
    """

    repository: str
    commit: str
    path: str
    sha256: str


@dataclass(frozen=True)
class RegisteredWeights:
    """One entry of `weights/registry.json`; what else an entry says is for people.

    Attributes:
        name: what `--weights` takes.
        path: where the file lies, or will lie when it has been fetched.
        sha256: of the file, in hexadecimal.
        description: one line on what they are for.
        source: where they are fetched from and converted; None for our own.
    """

    name: str
    path: Path
    sha256: str
    description: str
    source: Source | None = None


def cache_folder() -> Path:
    """Where fetched weights are kept: SAPNET_CACHE, or `sapnet` in the user's folder of caches."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    caches = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(caches or Path.home() / ".cache") / "sapnet"


def registered_weights() -> dict[str, RegisteredWeights]:
    """All weights that this installation knows, by name.

    Raises:
        CheckpointError: the registry is missing or damaged.
    """
    import json

    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    try:
        entries = json.loads((folder / "registry.json").read_text(encoding="utf-8"))
        weights = {}
        for entry in entries:
            source = Source(**entry["source"]) if "source" in entry else None
            place = folder if source is None else cache_folder()
            name, digest, description = entry["name"], entry["sha256"], entry["description"]
            weights[name] = RegisteredWeights(name, place / entry["file"], digest, description, source)
        return weights
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'registry.json'}: unreadable ({error}); install sapnet again") from error


def locate_weights(name: str) -> Path:
    """Turns a registered name, a path, or `hf://owner/repository/file` into the path of a file of weights.

    Registered weights are checked against their sha256, files of the user's own are not.

    Raises:
        CheckpointError: there are no such weights, they have to be fetched first, or the file was changed.
    """
    registered = registered_weights()
    if name.startswith(HUB_PREFIX):
        from sapnet_cli.hub.download import download_from_hub

        owner, _, rest = name.removeprefix(HUB_PREFIX).partition("/")
        repository, _, file = rest.partition("/")
        if not (owner and repository and file):
            raise CheckpointError(f"{name}: weights on the Hub are named hf://owner/repository/file")
        return download_from_hub(f"{owner}/{repository}", file)
    if name not in registered:
        if Path(name).is_file():
            return Path(name)
        if Path(name).is_dir():
            files = sorted(path for path in Path(name).iterdir() if path.suffix == ".safetensors")
            advice = f", as {files[0]}" if files else "; there is no file of weights in it"
            raise CheckpointError(f"{name}: a folder; name the file of weights{advice}")
        raise CheckpointError(f"no weights {name!r}: neither a file nor one of {', '.join(registered)}")
    weights = registered[name]
    if weights.source is not None and not weights.path.exists():
        raise CheckpointError(f"{name} is not here yet; fetch it with: sapnet download-weights {name}")
    check_weights(weights)
    return weights.path


def check_weights(weights: RegisteredWeights, path: Path | None = None) -> None:
    """Hashes a file of registered weights, which lies where the registry says or at a path.

    Raises:
        CheckpointError: the file cannot be read or is another one, with what to do about it.
    """
    path, again = path or weights.path, f"sapnet download-weights --force {weights.name}"
    advice = "install sapnet again" if weights.source is None else again
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; {advice}") from error
    check_digest(content, weights.sha256, str(path), advice)


def check_digest(content: bytes, sha256: str, what: str, advice: str) -> None:
    """Compares bytes with what they should be.

    Raises:
        CheckpointError: they are others; `what` begins its text, and the advice ends it.
    """
    import hashlib

    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        found = f"has sha256 {digest[:12]}... instead of {sha256[:12]}..."
        raise CheckpointError(f"{what}: {found}, it is damaged or was tampered with; {advice}")
