"""A GPU that is none: tensors say that they lie on it, are computed on the CPU, and refuse to be mixed with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)

MOVES = {"aten.copy_.default", "aten._to_copy.default", "aten.index.Tensor", "aten.index_put_.default"}
"""What takes tensors of two devices on a GPU, too."""

GIGABYTES = 2**33, 2**36


class OnGPU(Tensor):
    """A tensor on the pretended GPU; what it is of lies in `values`, on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGPU:
        outside = torch.empty_strided(values.size(), values.stride(), dtype=values.dtype, device="meta")
        tensor: OnGPU = torch.Tensor._make_subclass(cls, outside, False)
        tensor.values = values
        return tensor

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def item(self) -> Any:
        return self.values.item()

    def tolist(self) -> Any:
        return self.values.tolist()

    def __float__(self) -> float:
        return float(self.values)

    def __int__(self) -> int:
        return int(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)

    def new_tensor(self, data: Any, **options: Any) -> OnGPU:
        return OnGPU(torch.tensor(data, dtype=options.get("dtype", self.dtype)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.detach().__reduce_ex__(protocol)  # as if loaded onto the CPU

    def __deepcopy__(self, memo: Any) -> OnGPU:
        return OnGPU(self.values.clone())


class Everywhere(TorchDispatchMode):
    """Sees also what no tensor of the GPU takes part in, as moves to it. As a fake mode it needs no driver."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


def values_of(each: Any) -> Any:
    """What lies on the CPU for a tensor of the GPU; all else is what it is."""
    return each.values if isinstance(each, OnGPU) else each


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What PyTorch would do: on one device, to which only scalars of the CPU may come."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, OnGPU)]
    elsewhere = [each for each in tensors if not isinstance(each, OnGPU) and each.dim()]
    if there and elsewhere and str(function) not in MOVES:
        raise RuntimeError(f"{function} of tensors on two devices")
    place = kwargs.get("device") and torch.device(kwargs["device"]).type
    is_there = place == "cuda" or (bool(there) and place in (None, "meta"))  # which is where it lies, to C++
    if place and is_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(values_of, (args, kwargs))
    known = {id(values_of(each)): each for each in tensors}  # what was changed in place comes back itself

    def give(result: Any) -> Any:
        if id(result) in known:
            return known[id(result)]
        return OnGPU(result) if is_there and isinstance(result, Tensor) else result

    return tree_map(give, function(*args, **kwargs))


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Has PyTorch say that there is one."""
    getattr(torch._C, "_ensureCUDADeviceGuardSet", lambda: None)()  # newer PyTorch asks the driver without it
    to: Callable[..., Any] = torch.Tensor.to

    def numbered(place: Any) -> Any:
        is_place = isinstance(place, (str, torch.device))
        return GPU if is_place and torch.device(place).type == "cuda" else place

    def move(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return to(self, *map(numbered, args), **{name: numbered(each) for name, each in kwargs.items()})

    says = {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": (8, 0),
        "get_device_name": "pretended",
        "is_bf16_supported": True,
        "mem_get_info": GIGABYTES,
        "memory_reserved": 0,
        "memory_allocated": 0,
        "empty_cache": None,
        "synchronize": None,
        "is_current_stream_capturing": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in says.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        patch.setattr(torch.Tensor, "to", move)
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.inference_mode, "__enter__", lambda self: None)  # in which few operations are seen
        patch.setattr(torch.inference_mode, "__exit__", lambda self, *_: None)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with Everywhere():
                yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
