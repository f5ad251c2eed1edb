"""Arrays that C reads and writes: NumPy's, so that to derain a photo PyTorch need not be loaded, or PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = NDArray[Any] | Tensor
    AnyArray = TypeVar("AnyArray", NDArray[Any], Tensor)

BITS = np.dtype(np.uint16)
"""What holds bfloat16 in NumPy, which does not know it."""

KINDS: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": BITS}
"""Of values, and what holds them in NumPy."""

ALIGNMENT = 64
"""Bytes of a line of a cache, which vectors and matrices lie in, and stores past the caches must."""


def kind_of(array: Array) -> str:
    """One of `KINDS`, or what the dtype is called."""
    return name_of(array.dtype)


@cache
def name_of(dtype: Any) -> str:
    """The same of a dtype, NumPy's or PyTorch's."""
    if isinstance(dtype, np.dtype):
        return next((name for name, held in KINDS.items() if held == dtype), str(dtype))
    called = str(dtype).removeprefix("torch.")
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(called, called)


def address(array: Array) -> int:
    """Where it lies."""
    return int(array.__array_interface__["data"][0]) if isinstance(array, np.ndarray) else array.data_ptr()


def is_contiguous(array: Array) -> bool:
    """Whether it is in one piece."""
    return bool(array.flags.c_contiguous) if isinstance(array, np.ndarray) else array.is_contiguous()


def contiguous(array: Any) -> Any:
    """The array, or a copy in one piece."""
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()


def new_like(array: Any, *shape: int) -> Any:
    """An uninitialised array of the same kind."""
    return empty(shape, array.dtype) if isinstance(array, np.ndarray) else array.new_empty(shape)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array that begins where a line of a cache does."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -address(room) % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins where a line of a cache does, in one piece."""
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def to_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite values rounded to bfloat16, to the nearest and, in between, the even one."""
    wide = values.view(np.uint32)
    return ((wide + (0x7FFF + (wide >> 16 & 1))) >> 16).astype(np.uint16)


def from_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """What bfloat16 stands for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The same values in the same memory, to PyTorch."""
    import torch

    if array.dtype == BITS:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The other way round, of a tensor on the CPU."""
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.view(torch.int16).numpy().view(BITS)
        return bits
    array: NDArray[Any] = tensor.numpy()
    return array


def of_either(lay: Callable[..., Any]) -> Callable[..., Any]:
    """Lets what turns a kernel into another array, both NumPy's, take and give a tensor on the CPU as well."""

    @wraps(lay)
    def laid(weight: Any, *arguments: Any) -> Any:
        if isinstance(weight, np.ndarray):
            return aligned(lay(weight, *arguments))
        return as_tensor(aligned(lay(weight.detach().numpy(), *arguments)))

    return cast(Callable[..., Any], laid)
