"""ImageNet networks are found in a folder, in the cache, and on a hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serve

from sapnet_cli.errors import CheckpointError
from sapnet_cli.hub.backbones import locate_backbone

RESNETS = ("resnet101", "resnet50")

PROGRAM = """
import sys
from pathlib import Path
from sapnet_cli.errors import CheckpointError
from sapnet_cli.hub.backbones import locate_backbone
try:
    name, path = locate_backbone(sys.argv[1].split(","), None)
    print(name, path.read_text())
except CheckpointError as error:
    print("error:", error)
"""


def locate(names: str, home: Path, **environment: str) -> str:
    """In a process of its own: the Hub's client reads its settings when it is imported."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SAPNET_"))}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, names],
        env={**settings, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.parametrize(
    "file",
    [
        "vgg16.safetensors",
        "vgg16_features.safetensors",
        "timm/vgg16.tv_in1k/model.safetensors",
        "vgg16/model.safetensors",
    ],
)
def test_in_a_folder(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    assert locate_backbone(("vgg16",), tmp_path) == ("vgg16", tmp_path / file)


def test_the_better_of_two_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet50.safetensors").write_bytes(b"")
    monkeypatch.setenv("SAPNET_BACKBONES", str(tmp_path))
    assert locate_backbone(RESNETS)[0] == "resnet50"
    (tmp_path / "resnet101.safetensors").write_bytes(b"")
    assert locate_backbone(RESNETS)[0] == "resnet101"
    with pytest.raises(CheckpointError, match="does not exist"):
        locate_backbone(RESNETS, tmp_path / "nowhere")


def test_from_a_hub_then_from_the_cache(tmp_path: Path) -> None:
    with serve({"timm/resnet101.tv_in1k/model.safetensors": b"weights"}) as (address, requests):
        assert locate("resnet101,resnet50", tmp_path, HF_ENDPOINT=address) == "resnet101 weights"
        assert any(request.startswith("GET") for request in requests)
        before = len(requests)
        assert locate("resnet101,resnet50", tmp_path, HF_ENDPOINT=address) == "resnet101 weights"
        assert len(requests) == before, "what is in the cache needs no network"
    assert locate("resnet101", tmp_path, HF_HUB_OFFLINE="1") == "resnet101 weights"


def test_nowhere_to_be_had(tmp_path: Path) -> None:
    advice = "or put vgg16.safetensors into a folder and name it with --backbones or SAPNET_BACKBONES"
    with serve({}) as (address, _):
        for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": address}):
            said = locate("vgg16", tmp_path, **environment)
            assert said.startswith("error: timm/vgg16.tv_in1k/model.safetensors: ")
            assert advice in said
            assert len(said.splitlines()) == 1
