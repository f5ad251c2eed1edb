"""Compiles what of the package is in C where a compiler is at hand; without one the package is the same, but slower."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-O3", "-shared", "-fPIC")
X86 = {"avx512": ("-mavx512f",), "avx2": ("-mavx2", "-mfma", "-mf16c")}
SETS: dict[str, dict[str, tuple[str, ...]]] = {"x86_64": X86, "aarch64": {"neon": ()}}
"""Of instructions, by machine: all is compiled for each, and a CPU takes the best that it has. As in compiled.py."""


class NativeBuildHook(BuildHookInterface):
    """Of wheels, editable ones among them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles beside the source, as an editable install wants it."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root, "sapnet_cli", "model", "c")
        compiled = compile_sources(folder)
        if not compiled:
            self.app.display_warning("what is in C is not compiled, for want of Linux, an x86 or Arm CPU or a compiler")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        for file in compiled:
            build_data["force_include"][str(file)] = f"sapnet_cli/model/c/{file.name}"


def compile_sources(folder: Path) -> list[Path]:
    """The compiled files, beside the sources, for each of `SETS` that the compiler knows; none where there is none."""
    sets = SETS.get(platform.machine(), {})
    if sys.platform != "linux" or not sets:
        return []
    named = shlex.split(os.environ.get("CC", ""))
    compiler = named or [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))][:1]
    if not compiler:
        return []
    # as `compiled_name` in compiled.py, which cannot be imported here, where there is no torch
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.[ch]")):
        digest.update(source.read_bytes())
    sources = sorted(str(source) for source in folder.glob("*.c"))
    try:
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            fresh = []
            for instructions, flags in sets.items():
                file = Path(aside, f"sapnet-{digest.hexdigest()[:12]}-{instructions}.so")
                command = [*compiler, *FLAGS, *flags, "-o", str(file), *sources]
                if subprocess.run(command, check=False, capture_output=True).returncode == 0:  # noqa: S603
                    fresh.append(file)
            for old in folder.glob("sapnet-*.so"):
                old.unlink(missing_ok=True)
            return [file.replace(folder / file.name) for file in fresh]
    except OSError:
        return []
