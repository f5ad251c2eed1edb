"""Compiles what of the package is in C; where nothing can compile it the package is the same, but slower.

Where there is no compiler, as in slim containers, Zig's is fetched for the build. Whoever wants neither says CC=none.
"""

from __future__ import annotations

import hashlib
import importlib.util
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
AMX = "-mavx512f", "-mavx512bw", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mprfchw"
X86 = {"amx": AMX, "avx512": ("-mavx512f",), "avx2": ("-mavx2", "-mfma", "-mf16c")}
SETS: dict[str, dict[str, tuple[str, ...]]] = {"x86_64": X86, "aarch64": {"neon": ()}}
"""Of instructions, by machine: all is compiled for each, and a CPU takes the best that it has. As in compiled.py."""

ZIG = "ziglang"
"""A package with a C compiler in it; what it compiles for is named, as its default is the very CPU that it runs on."""


class NativeBuildHook(BuildHookInterface):
    """Of wheels, editable ones among them."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs besides."""
        return [ZIG] if sets_here() and not find_compiler() else []

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


def sets_here() -> dict[str, tuple[str, ...]]:
    """Those of this machine; none where nothing is to be compiled."""
    return SETS.get(platform.machine(), {}) if sys.platform == "linux" else {}


def find_compiler() -> list[str]:
    """The command of the C compiler that is named by CC or found; empty where there is none."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return shlex.split(os.environ.get("CC", "")) or [path for path in found if path][:1]


def compile_sources(folder: Path) -> list[Path]:
    """The compiled files, beside the sources, for each of `SETS` that the compiler knows; none where there is none."""
    compiler = find_compiler()
    if not compiler and importlib.util.find_spec(ZIG):
        compiler = [sys.executable, "-m", ZIG, "cc", "-target", f"{platform.machine()}-linux-gnu.2.17"]
    if not compiler:
        return []
    # as `compiled_name` in compiled.py, which cannot be imported here, where there is no torch
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.[ch]")):
        digest.update(source.read_bytes())
    sources = sorted(str(source) for source in folder.glob("*.c"))
    try:
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            caches = {"ZIG_GLOBAL_CACHE_DIR": aside, "ZIG_LOCAL_CACHE_DIR": aside}  # not in the user's home
            fresh = []
            for instructions, flags in sets_here().items():
                file = Path(aside, f"sapnet-{digest.hexdigest()[:12]}-{instructions}.so")
                command = [*compiler, *FLAGS, *flags, "-o", str(file), *sources]
                result = subprocess.run(command, check=False, capture_output=True, env=os.environ | caches)  # noqa: S603
                if result.returncode == 0:
                    fresh.append(file)
            for old in folder.glob("sapnet-*.so"):
                old.unlink(missing_ok=True)
            return [file.replace(folder / file.name) for file in fresh]
    except OSError:
        return []
