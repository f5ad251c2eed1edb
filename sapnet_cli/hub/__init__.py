"""The weights that come with sapnet, found by name and checked before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sapnet_cli.errors import CheckpointError

DEFAULT_WEIGHTS = "sapnet-base"

PACKAGED = Path(__file__).resolve().parents[1] / "weights"  # in the wheel
CHECKOUT = Path(__file__).resolve().parents[2] / "weights"


@dataclass(frozen=True)
class RegisteredWeights:
    """One entry of `weights/registry.json`; what else an entry says is for people.

    Attributes:
        name: what `--weights` takes.
        path: where the file lies.
        sha256: of the file, in hexadecimal.
        description: one line on what they are for.
    """

    name: str
    path: Path
    sha256: str
    description: str


def registered_weights() -> dict[str, RegisteredWeights]:
    """All weights that come with this installation, by name.

    Raises:
        CheckpointError: the registry is missing or damaged.
    """
    import json

    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    try:
        entries = json.loads((folder / "registry.json").read_text(encoding="utf-8"))
        return {
            entry["name"]: RegisteredWeights(
                entry["name"], folder / entry["file"], entry["sha256"], entry["description"]
            )
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'registry.json'}: unreadable ({error}); install sapnet again") from error


def locate_weights(name: str) -> Path:
    """Turns a registered name, or a path, into the path of a file of weights.

    Registered weights are checked against their sha256, files of the user's own are not.

    Raises:
        CheckpointError: there are no such weights, or the registered file was changed.
    """
    import hashlib

    registered = registered_weights()
    if name not in registered:
        if Path(name).is_file():
            return Path(name)
        raise CheckpointError(f"no weights {name!r}: neither a file nor one of {', '.join(registered)}")
    weights = registered[name]
    try:
        digest = hashlib.sha256(weights.path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{weights.path}: {error.strerror}; install sapnet again") from error
    if digest != weights.sha256:
        raise CheckpointError(
            f"{weights.path}: has sha256 {digest[:12]}... instead of {weights.sha256[:12]}..., it is damaged or was "
            "tampered with; install sapnet again"
        )
    return weights.path
