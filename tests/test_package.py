"""Importing and asking for help are instant: nothing heavy is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs_native, random_pixels
from PIL import Image

import sapnet_cli

HEAVY = ("torch", "torchvision", "huggingface_hub", "cv2", "numpy", "PIL", "safetensors", "psutil")


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        ["--help"],
        ["--version"],
        ["derain", "--help"],
        ["train", "--help"],
        ["benchmark", "--help"],
        ["download-weights", "--help"],
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str] | None) -> None:
    program = "import sys, sapnet_cli\n"
    if arguments is not None:
        program += f"sys.argv = ['sapnet', *{arguments!r}]\nfrom sapnet_cli.cli.app import main\n"
        program += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    program += f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED []"


@needs_native
@pytest.mark.parametrize(
    "options",
    [[], ["--precision", "fp32", "--tta", "--pyramid", "2", "--insist", "auto"], ["--tile", "32", "--overlap", "8"]],
)
def test_pytorch_is_not_loaded_to_derain_a_photo_by_what_is_in_c(options: list[str], tmp_path: Path) -> None:
    """It takes several times as long as the photo. Where there may be a GPU it is asked, so none is looked for here."""
    Image.fromarray(random_pixels(40, 60)).save(tmp_path / "rainy.png")
    arguments = ["derain", str(tmp_path / "rainy.png"), "-o", str(tmp_path / "dry.png"), "--device", "cpu", *options]
    program = f"import sys\nsys.argv = ['sapnet', *{arguments!r}]\nfrom sapnet_cli.cli.app import main\n"
    if "--tile" in options:
        program += "from sapnet_cli.engine import budget\nbudget.CPU_BUDGET = 0\n"
    program += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    program += "print('LOADED', [name for name in ('torch', 'cv2') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED []"
    assert (tmp_path / "dry.png").exists()


def test_version_and_lazy_interface() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sapnet_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"sapnet {sapnet_cli.__version__}"
    assert sapnet_cli.Derainer.__name__ == "Derainer"
    with pytest.raises(AttributeError, match="no attribute 'Rainer'"):
        _ = sapnet_cli.Rainer  # type: ignore[attr-defined]
