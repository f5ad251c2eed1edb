"""What PyTorch pickled, such as the `.pth` files of weights that the authors of SAPNet and PReNet released.

Nothing is ever unpickled beyond plain data and tensors.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.errors import CheckpointError

RELEASED_PREFIX = "module."


def unpickle(path: Path) -> Any:
    """Plain data and tensors that PyTorch pickled, on the CPU.

    Raises:
        pickle.UnpicklingError: the file is missing or damaged, or holds code, which is not run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch wonders about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged data may come to anything
        raise pickle.UnpicklingError(str(error)) from error


def read_released(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file of weights, by name; those in bfloat16 as float32, which NumPy knows.

    Raises:
        CheckpointError: the file is damaged, or holds anything else.
    """
    try:
        content = unpickle(path)
    except pickle.UnpicklingError as error:
        if any(phrase in str(error) for phrase in ("GLOBAL", "Unsupported class", "unrecognized function")):
            raise CheckpointError(
                f"{path}: holds pickled code besides tensors and is not loaded; ask for a safetensors file"
            ) from error
        raise CheckpointError(f"{path}: damaged PyTorch file; fetch or copy it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: not a plain table of tensors; pass the network's state_dict")
    return {str(name).removeprefix(RELEASED_PREFIX): to_numpy(tensor) for name, tensor in content.items()}


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A tensor on the CPU, in bfloat16 as float32."""
    values: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()
    return values
