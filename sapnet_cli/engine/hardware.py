"""What this machine has: device, precision and memory. PyTorch is loaded only where it is asked or is to compute."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from sapnet_cli.cores import container_limits
from sapnet_cli.errors import UsageError
from sapnet_cli.model import compiled, matrices

PRECISIONS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""By name, and bytes of a value."""

GPU_FILES = "nvidia*", "nvhost*", "nvmap", "kfd", "dxg"
"""Of /dev under Linux, one of which is there wherever there is a GPU that PyTorch knows: NVIDIA's, AMD's, Windows'."""

log = logging.getLogger(__name__)

SLOW = "this CPU is slow in bf16, and faster with --precision auto"

MALLOC_TRIM, MALLOC_MMAP = (-1, 2**29), (-3, 2**25)
"""Of glibc's `mallopt`: its parameters, and how many freed bytes to keep, of blocks up to which size."""


@dataclass(frozen=True)
class Device:
    """What PyTorch calls a device.

    Attributes:
        type: `cpu`, `cuda` or `mps`.
        index: of several, if one is named.
    """

    type: str
    index: int | None = None

    def __str__(self) -> str:
        """As PyTorch takes it."""
        return self.type if self.index is None else f"{self.type}:{self.index}"


CPU = Device("cpu")


class AnyDevice(Protocol):
    """A `Device`, or PyTorch's own."""

    @property
    def type(self) -> str:
        """`cpu`, `cuda` or `mps`."""


KERNELS_KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256"
"""A size of picture needs some 70. oneDNN's own number, 1024, is half a gigabyte where each picture has another."""


def prepare_process(device: str = "auto") -> None:
    """Sets what holds for the whole process, which computes on a device: for programs, not for libraries.

    glibc is told to keep some of what is freed; else each plane of features is given back and faulted in anew. oneDNN
    is told to keep fewer of its kernels, of which each size of picture has its own. And NVIDIA GPUs multiply fp32 as it
    is: in TF32, PyTorch's default, its mantissa is as short as that of fp16.
    """
    os.environ.setdefault(*KERNELS_KEPT)  # read at the first convolution
    for parameter, value in (MALLOC_TRIM, MALLOC_MMAP):
        _call_glibc("mallopt", parameter, value)
    if device != "cpu" and may_have_gpu():
        import torch

        torch.backends.cudnn.allow_tf32 = False


def give_back_freed_memory() -> None:
    """Gives the system what glibc kept for `prepare_process`: a decoder leaves three times the picture behind."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL("libc.so.6"), name)(*arguments)


def may_have_gpu() -> bool:
    """Whether PyTorch is worth asking for one, which takes longer than deraining a small photo: if not, there is none.

    Whether it is loaded already counts, as asking costs nothing then.
    """
    if "torch" in sys.modules or sys.platform != "linux":
        return True
    return any(True for name in GPU_FILES for _ in Path("/dev").glob(name))


def choose_device(name: str) -> Device:
    """Turns `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that is there; auto takes CUDA, then MPS, then CPU.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if name == "cpu" or (name == "auto" and not may_have_gpu()):
        return CPU
    match = re.fullmatch(r"(auto|cpu|cuda|mps)(?::(\d+))?", name)
    if match is None or (match[1] == "auto" and match[2]):
        raise UsageError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps")
    device = Device(match[1], None if match[2] is None else int(match[2]))
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return Device("cuda")
        return Device("mps") if torch.backends.mps.is_available() else CPU
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name!r}: no usable CUDA GPU or driver is here; use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UsageError(
                f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {name!r}: this machine has no Apple GPU; use --device cpu")
    return device


def split_devices(names: str) -> list[str]:
    """The devices of a list such as `cuda:0,1` or `cuda:0,cuda:1`; a single name as it is.

    Raises:
        UsageError: they are not different GPUs.
    """
    first, *others = names.split(",")
    if not others:
        return [first]
    kind = first.partition(":")[0]
    devices = [first, *(name if ":" in name else f"{kind}:{name}" for name in others)]
    if len(set(devices)) < len(devices) or not all(re.fullmatch(r"cuda:\d+", device) for device in devices):
        raise UsageError(f"device {names!r} is not a list of different GPUs, as in cuda:0,1")
    return devices


def choose_precision(name: str, device: AnyDevice, channels: int | None = None) -> str:
    """Turns `auto` into a name of `PRECISIONS`, and lets such names pass; auto is the fastest that is safe on `device`.

    fp16 pays on GPUs with tensor cores, and on CPUs where what is in C lets features lie in it and computes in fp32: as
    fast as bf16 there and eight times as near to fp32, and faster than int8, even with AVX512-BF16. Where there is AMX
    as well, what is in C multiplies matrices of bf16, in half of the time, if the network has as many `channels` as
    they take. Without what is in C int8 pays on CPUs with AVX2. Elsewhere all are slower than `fast_float`, which is
    taken then.

    Raises:
        UsageError: no such precision, or not here.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(f"precision {name!r} is not one of auto, {', '.join(PRECISIONS)}")
        if name == "int8" and not (device.type == "cpu" and multiplies_bytes()):
            raise UsageError("int8 needs an x86 CPU with AVX2; use --precision auto")
        return name
    if device.type == "cpu":
        if compiled.is_available():
            multiplies = channels is not None and matrices.are_multiplied(channels, "bf16")
            return "bf16" if multiplies else "fp16"
        if not multiplies_bytes():
            return fast_float()
        log.info("what is in C, and faster, is not compiled here; under Linux pip install does that, unless CC=none")
        return "int8"
    if device.type == "cuda":
        import torch

        if torch.cuda.get_device_capability(str(device)) >= (7, 0):
            return "fp16"
    return "fp32"


def fast_float() -> str:
    """The floating point that PyTorch is fastest in on this CPU."""
    import torch

    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def is_slow_in(precision: str, device: AnyDevice) -> bool:
    """Whether PyTorch computes slowly in a precision on a device: what is in C does not."""
    return device.type == "cpu" and precision == "bf16" and fast_float() != "bf16"


def multiplies_bytes() -> bool:
    """Whether this CPU has instructions that multiply bytes, and this PyTorch convolutions that use them."""
    import torch

    return torch.cpu._is_avx2_supported() and hasattr(torch.ops.onednn, "qconv2d_pointwise")


def sums_bytes_exactly() -> bool:
    """Whether products of bytes are summed in 32 bits (VNNI), not two and two in 16 first, where they may be cut."""
    import torch

    return torch.cpu._is_vnni_supported()


def free_memory(device: AnyDevice) -> int:
    """Bytes that can still be taken on `device`: a container's limit counts as much as the machine's."""
    if device.type == "cuda":
        import torch

        name = str(device)
        unused, _ = torch.cuda.mem_get_info(name)
        return int(unused + torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name))
    free: int = psutil.virtual_memory().available
    for limit, usage in container_limits(
        ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    ):
        free = min(free, max(0, limit - usage))
    return free


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory was short, on whatever device."""
    text = str(error).lower()
    known = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
    # PyTorch's own says so, too
    return isinstance(error, MemoryError) or any(phrase in text for phrase in known)


def synchronize(device: AnyDevice) -> None:
    """Waits until a GPU has done all that it was asked to: before a clock is read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(str(device))
