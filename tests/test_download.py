"""Weights are fetched over real HTTP, checked before they are kept, and found by name afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import invoke
from hub_server import serve
from typer.testing import Result

from sapnet_cli.hub import RegisteredWeights, registered_weights
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.model.config import PRENET

PEERS = {
    "sapnet-official": "sapnet_official_rain100h.pth",
    "prenet-rain100l": "prenet_official_rain100l.pth",
    "prenet-rain100h": "prenet_official_rain100h.pth",
}


def sapnet(*arguments: object, home: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with caches of its own and no way out but what the test serves."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SAPNET_"))}
    closed = {"HF_HUB_OFFLINE": "1", "SAPNET_GITHUB_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "sapnet_cli", *(str(each) for each in arguments)],
        env={**settings, **closed, "HF_HOME": str(home / "hf"), "SAPNET_CACHE": str(home / "cache"), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def here(*arguments: object, home: Path, code: int = 0, **environment: str) -> Result:
    """The command in this process, where nothing is asked of the Hub."""
    closed = {"SAPNET_GITHUB_ENDPOINT": "http://127.0.0.1:9", "SAPNET_CACHE": str(home / "cache")}
    return invoke(*arguments, code=code, **{**closed, **environment})


def github(name: str, content: bytes) -> dict[str, bytes]:
    """What a mirror of GitHub serves."""
    source = entry(name).source
    assert source is not None
    return {f"{source.repository}/{source.commit}/{source.path}": content}


def entry(name: str) -> RegisteredWeights:
    return registered_weights()[name]


def test_a_list_of_what_there_is(tmp_path: Path) -> None:
    result = sapnet("download-weights", "--json", home=tmp_path)
    records = {record["name"]: record["path"] for record in map(json.loads, result.stdout.splitlines())}
    ours = ["sapnet-general", "sapnet-light", "sapnet-heavy"]
    assert records.keys() == {*ours, *PEERS, "vgg16", "resnet101", "resnet50"}
    assert [name for name, path in records.items() if path] == ours
    assert "comes with sapnet" in result.stderr


@pytest.mark.parametrize("name", PEERS)
def test_released_weights_arrive_as_safetensors(name: str, shared: Path, tmp_path: Path) -> None:
    with serve(github(name, (shared / "peers" / PEERS[name]).read_bytes())) as (address, requests):
        here("download-weights", name, home=tmp_path, SAPNET_GITHUB_ENDPOINT=address)
        again = here("download-weights", name, home=tmp_path, SAPNET_GITHUB_ENDPOINT=address)
        assert "here already" in again.stderr
        assert len(requests) == 1
        here("download-weights", name, "--force", home=tmp_path, SAPNET_GITHUB_ENDPOINT=address)
        assert len(requests) == 2
    path = tmp_path / "cache" / f"{name}.safetensors"
    assert (load_checkpoint(path).config == PRENET) == name.startswith("prenet")
    photo = Path(__file__).parents[1] / "examples" / "rainy" / "rocket.jpg"
    here("derain", photo, "-o", tmp_path / "out", "--weights", name, "--stages", 1, home=tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    spoilt = here("derain", photo, "-o", tmp_path / "out", "--weights", name, home=tmp_path, code=2)
    assert f"sapnet download-weights --force {name}" in spoilt.stderr
    assert "damaged or was tampered with" in here("download-weights", "--verify", name, home=tmp_path, code=1).stderr


def test_weights_named_to_be_verified_must_be_here(tmp_path: Path) -> None:
    assert "prenet-rain100l: not here" in here("download-weights", "--verify", home=tmp_path).stderr
    here("download-weights", "--verify", "sapnet-light", "prenet-rain100l", home=tmp_path, code=1)


def test_weights_that_are_not_here_say_how_to_fetch_them(tmp_path: Path) -> None:
    result = here("derain", "x.png", "-o", "y", "--weights", "prenet-rain100l", home=tmp_path, code=2)
    assert "sapnet download-weights prenet-rain100l" in result.stderr or "x.png" in result.stderr
    photo = Path(__file__).parents[1] / "examples" / "rainy" / "rocket.jpg"
    result = here("derain", photo, "-o", tmp_path, "--weights", "prenet-rain100l", home=tmp_path, code=2)
    assert result.stderr.strip().endswith("fetch it with: sapnet download-weights prenet-rain100l")


def test_tampered_weights_are_not_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    base = entry("sapnet-general").path.read_bytes()
    files = {**github("prenet-rain100l", b"something else"), "me/mine/sapnet-general.safetensors": base}
    with serve(files) as (address, _):
        result = sapnet(
            *("download-weights", "prenet-rain100l", "sapnet-general"),
            *("--dest", tmp_path / "here", "--repo", "me/mine"),
            home=tmp_path,
            code=1,
            SAPNET_GITHUB_ENDPOINT=address,
            HF_ENDPOINT=address,
            HF_HUB_OFFLINE="0",
        )
    assert "damaged or was tampered with; nothing was kept" in result.stderr
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["sapnet-general.safetensors"]
    assert (tmp_path / "here" / "sapnet-general.safetensors").read_bytes() == base


def test_ours_are_copied_without_a_network(tmp_path: Path) -> None:
    sapnet("download-weights", "sapnet-light", "--dest", tmp_path / "here", home=tmp_path)
    assert (tmp_path / "here" / "sapnet-light.safetensors").read_bytes() == entry("sapnet-light").path.read_bytes()


def test_other_weights_under_our_name_are_refused(tmp_path: Path) -> None:
    with serve({"me/mine/sapnet-general.safetensors": b"something else"}) as (address, _):
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "SAPNET_HUB_REPO": "me/mine"}
        result = sapnet(
            *("download-weights", "sapnet-general", "--dest", tmp_path / "here"), home=tmp_path, code=1, **environment
        )
    assert "nothing was kept" in result.stderr
    assert not (tmp_path / "here").exists()


def test_backbones_and_foreign_weights_come_from_the_hub(tmp_path: Path) -> None:
    base = entry("sapnet-general").path.read_bytes()
    files = {"timm/vgg16.tv_in1k/model.safetensors": b"vgg", "me/mine/rain.safetensors": base}
    photo = Path(__file__).parents[1] / "examples" / "rainy" / "rocket.jpg"
    with serve(files) as (address, _):
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        sapnet("download-weights", "vgg16", "--force", "--dest", tmp_path / "here", home=tmp_path, **environment)
        options = ("-o", tmp_path / "out", "--stages", 1, "--weights")
        sapnet("derain", photo, *options, "hf://me/mine/rain.safetensors", home=tmp_path, **environment)
        missing = sapnet(
            "derain", photo, *options, "hf://me/mine/snow.safetensors", home=tmp_path, code=2, **environment
        )
        assert "me/mine/snow.safetensors" in missing.stderr
    sapnet("derain", photo, *options, "hf://me/mine/rain.safetensors", home=tmp_path)  # offline, from the cache
    assert (tmp_path / "here" / "vgg16.safetensors").read_bytes() == b"vgg"
    malformed = here("derain", photo, *options, "hf://rain.safetensors", home=tmp_path, code=2)
    assert "hf://owner/repository/file" in malformed.stderr


def test_unreachable_and_unknown(tmp_path: Path) -> None:
    result = here("download-weights", "prenet-rain100h", home=tmp_path, code=1)
    assert "cannot be reached" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "there are sapnet-general" in here("download-weights", "snow", home=tmp_path, code=2).stderr


def test_a_hub_that_cannot_be_reached_is_said_once(tmp_path: Path) -> None:
    patient = "import time; time.sleep = lambda seconds: None; from sapnet_cli.cli.app import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", patient, "derain", "-", "-o", "-", "-w", "hf://someone/something/x.safetensors"],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "not in the cache, and the Hub cannot be reached" in result.stderr
