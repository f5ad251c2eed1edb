"""How the package's build compiles what is in C: by which compiler, for which instructions, under which names."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sapnet_cli.model import compiled


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`hatch_build.py`, as on Linux, x86 and with CC not set."""
    spec = importlib.util.spec_from_file_location("hatch_build", Path(__file__).parents[1] / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("CC", raising=False)
    return module


def needed(build: ModuleType) -> list[str]:
    return build.NativeBuildHook("", {}, None, None, "", "wheel").dependencies()


def test_a_compiler_is_fetched_where_there_is_none(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert needed(build) == []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert needed(build) == ["ziglang"]
    monkeypatch.setenv("CC", "none")
    assert needed(build) == []
    monkeypatch.delenv("CC")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")  # for which nothing is written
    assert needed(build) == []


def test_what_is_fetched_compiles_for_any_cpu_of_its_kind(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zig's own default is the very CPU that it runs on."""
    commands: list[list[str]] = []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(build.subprocess, "run", run)
    for machine in ("x86_64", "aarch64"):
        commands.clear()
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert build.compile_sources(tmp_path) == []
        assert len(commands) == len(build.SETS[machine])
        for command in commands:
            assert command[1:6] == ["-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_program_knows_the_names_that_are_given(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.c").write_text("const long sapnet_lanes = 1;")
    (tmp_path / "sapnet-old.so").touch()
    monkeypatch.setattr(build, "SETS", {"x86_64": {"avx512": (), "avx2": ("-nonsense-",), "neon": ()}})
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    made = build.compile_sources(tmp_path)
    assert [file.name for file in made] == [compiled.compiled_name(each) for each in ("avx512", "neon")]
    assert sorted(tmp_path.glob("*.so")) == sorted(made)


def test_each_set_of_instructions_is_known_to_both(build: ModuleType) -> None:
    assert {name for sets in build.SETS.values() for name in sets} == set(compiled.SETS)
