"""Small pictures on a GPU: a forward recorded once as a CUDA graph, then replayed at the price of one launch.

The network is some six hundred small kernels. On a picture of a few hundred pixels a side a GPU is done with each
before the next has been asked for; a graph asks for all of them at once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Forward: TypeAlias = Callable[[Tensor], Tensor]

MOST_SHAPES = 8
"""Recordings that are kept, the last used ones."""

log = logging.getLogger(__name__)


class ReplayedForward:
    """A forward that is recorded when a shape comes back, and replayed from then on.

    A folder of one camera's photos has few shapes; a shape that comes once is not worth a recording.
    """

    def __init__(self, forward: Forward, record: Callable[[Forward, Tensor], Forward] | None = None) -> None:
        """Takes what to run, always on one device, and how to record it for a shape, which is as a CUDA graph."""
        self._forward, self._record = forward, record or CudaRecorder()
        self._seen: OrderedDict[tuple[torch.Size, torch.dtype], Forward | None] = OrderedDict()

    def __call__(self, pictures: Tensor) -> Tensor:
        """As the forward; the result is overwritten by the next call.

        Raises:
            torch.OutOfMemoryError: on the device.
        """
        kind = pictures.shape, pictures.dtype
        known = kind in self._seen
        run = self._seen.pop(kind, None)
        if known and run is None:
            run = self._recorded(pictures)
        self._seen[kind] = run
        while len(self._seen) > MOST_SHAPES:
            self._seen.popitem(last=False)
        return (run or self._forward)(pictures)

    def _recorded(self, pictures: Tensor) -> Forward:
        try:
            return self._record(self._forward, pictures)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a driver that does not record this; slower, not wrong
            log.info("no CUDA graph: %s", " ".join(str(error).split()))
            return self._forward


class CudaRecorder:
    """Records forwards as CUDA graphs, which share their memory: only one runs at a time."""

    def __init__(self) -> None:
        self._memory: Any = None

    def __call__(self, forward: Forward, pictures: Tensor) -> Forward:
        """A replay of the forward for pictures of this shape, which are copied to where the graph reads them."""
        with torch.cuda.device(pictures.device):
            self._memory = self._memory or torch.cuda.graph_pool_handle()
            read = pictures.clone()
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                forward(read)  # what is chosen and set up at the first run of a shape must not be recorded
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # other threads may drive other GPUs meanwhile
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                result = forward(read)

        def replay(pictures: Tensor) -> Tensor:
            read.copy_(pictures, non_blocking=True)
            graph.replay()
            return result

        return replay
