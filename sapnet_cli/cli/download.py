"""`sapnet download-weights`: fetches weights by name, and says what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapnet_cli.cli.output import EXIT_FAILED, Output, exit_codes
from sapnet_cli.errors import CheckpointError, SapnetError, UsageError
from sapnet_cli.hub import RegisteredWeights, cache_folder, registered_weights
from sapnet_cli.hub.backbones import BACKBONES, find_backbone


def download_weights(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Which; without any, lists what there is.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dest: Annotated[
        Path | None, typer.Option("--dest", metavar="DIR", help="Write there instead of into the cache.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch even what is here.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash what is here again, and fetch nothing; of those named, all must be here."),
    ] = False,
    repo: Annotated[
        str | None, typer.Option("--repo", help="Hub repository of our own weights; SAPNET_HUB_REPO names it too.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of the Hub repository.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Fetch weights: ours, those that the authors of SAPNet and PReNet released, and backbones for training.

    sapnet download-weights prenet-rain100l && sapnet derain photos/ -o clean/ --weights prenet-rain100l

    Exit codes: 0 all done, 1 some failed (the rest is done), 2 wrong usage, 130 interrupted.
    """
    with exit_codes("what was fetched is whole"):
        out = Output(quiet=quiet, verbose=False, json_lines=json_lines)
        registered = registered_weights()
        known = [*registered, *BACKBONES]
        wanted = known if everything else names or []
        for name in wanted:
            if name not in known:
                raise UsageError(f"no weights {name!r}; there are {', '.join(known)}")
        if not wanted and not verify:
            _list(registered, out)
            return
        failed = False
        for name in dict.fromkeys(wanted or known):
            try:
                if verify:
                    found = _verify(name, registered, dest, out)
                    failed |= name in (names or []) and not found
                else:
                    _fetch(name, registered, dest, force, repo, revision, out)
            except (SapnetError, OSError) as error:
                failed = True
                reason = str(error) if isinstance(error, SapnetError) else f"{name}: {error.strerror or error}"
                out.json({"name": name, "status": "failed", "error": reason})
                out.error(reason)
        if failed:
            raise typer.Exit(EXIT_FAILED)


def _list(registered: dict[str, RegisteredWeights], out: Output) -> None:
    for name, weights in registered.items():
        place = "comes with sapnet" if weights.source is None else "here" if weights.path.exists() else "not here"
        out.info(f"{name:18} {place:18} {weights.description}")
        out.json({"name": name, "path": str(weights.path) if weights.path.exists() else None})
    for name, backbone in BACKBONES.items():
        path = find_backbone((name,))
        out.info(f"{name:18} {'here' if path else 'not here':18} ImageNet network for training, {backbone.repository}")
        out.json({"name": name, "path": str(path[1]) if path else None})
    out.info(f"fetched weights are kept in {cache_folder()}, backbones in the Hugging Face cache")


def _fetch(
    name: str,
    registered: dict[str, RegisteredWeights],
    dest: Path | None,
    force: bool,
    repo: str | None,
    revision: str | None,
    out: Output,
) -> None:
    from sapnet_cli.hub.download import fetch_backbone, fetch_weights, verify_weights

    if name in BACKBONES:
        path = fetch_backbone(BACKBONES[name], dest, revision, force)
    else:
        weights = registered[name]
        try:
            there = None if force else verify_weights(weights, dest)
        except CheckpointError as error:
            out.warn(f"{error}; fetching it again")
            there = None
        if there is not None:
            out.info(f"{name}: here already, {there}")
            out.json({"name": name, "status": "here", "path": str(there)})
            return
        path = fetch_weights(weights, dest or cache_folder(), repo, revision)
    out.info(f"{name}: {path}")
    out.json({"name": name, "status": "fetched", "path": str(path)})


def _verify(name: str, registered: dict[str, RegisteredWeights], dest: Path | None, out: Output) -> bool:
    """Whether they are here at all; raises `CheckpointError` where they are not whole."""
    from sapnet_cli.hub.download import verify_weights

    if name in BACKBONES:
        found = find_backbone((name,), dest)
        status, path = ("no known sha256" if found else "not here"), found[1] if found else None
    else:
        path = verify_weights(registered[name], dest)
        status = "whole" if path else "not here"
    out.info(f"{name}: {status}" + (f", {path}" if path else ""))
    out.json({"name": name, "status": status, "path": str(path) if path else None})
    return path is not None
