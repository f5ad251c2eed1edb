"""The one way to run the network on pictures: whole or in tiles, in batches, within the memory there is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.engine.budget import GPU_PIXELS, SMALLEST_TILE, Budget
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.forward import Cores, Forward
from sapnet_cli.engine.hardware import (
    SLOW,
    choose_device,
    choose_precision,
    give_back_freed_memory,
    is_out_of_memory,
    is_slow_in,
)
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.native import NativeNetwork, is_native
from sapnet_cli.engine.pixels import Pixels, mean_change, to_batch, to_float, to_pixels
from sapnet_cli.engine.progress import Report, in_groups, part_of, work_beside
from sapnet_cli.engine.pyramid import FACTOR, add_enlarged, count_levels, shrink
from sapnet_cli.engine.statistics import choose_sample
from sapnet_cli.engine.tiled import TiledForward, Windows
from sapnet_cli.engine.tiles import TilePlan, fit_tiles, plan_tiles
from sapnet_cli.errors import ImageError, OutOfMemoryError, UsageError
from sapnet_cli.model import compiled
from sapnet_cli.model.weights import Weights

if TYPE_CHECKING:
    from sapnet_cli.engine.network import TorchNetwork
    from sapnet_cli.model.sapnet import SAPNet

Result = TypeVar("Result")

log = logging.getLogger(__name__)

FLOAT_MARGIN = 1.0
"""How far beyond [0, 1] floats may lie, as resizing leaves them; what lies further is on another scale."""

HARDLY_CHANGED, THEN_INSISTED = 1.0, 1.5
"""A picture that changes by less, in levels of 255, is derained again with this much rain, by `insist` of `auto`. By
the default weights none of 36 real photos is by now, but one is near, at 1.2; the others, and light pairs, change by
1.4 at least."""


class Engine:
    """Runs one network on pictures: (H, W, 3) RGB arrays of uint8, uint16 or float32 in [0, 1], any size from 1x1.

    PyTorch is loaded only where it is to compute, or to look for a GPU: see `engine/native.py`.
    """

    def __init__(self, model: Weights | SAPNet, config: EngineConfig | None = None) -> None:
        """Takes a network, as it is now.

        Raises:
            UsageError: the device is not there, the network has fewer stages than are asked for, or does not know what
                it is to insist on.
        """
        self.config = config or EngineConfig()
        if not isinstance(model, Weights):
            from sapnet_cli.model.checkpoint import weights_of

            model = weights_of(model)
        self.device = choose_device(self.config.device)
        self.precision = choose_precision(self.config.precision, self.device, model.config.channels)
        self.stages = model.config.stages if self.config.stages is None else self.config.stages
        if not 1 <= self.stages <= model.config.stages:
            raise UsageError(f"stages {self.stages} is out of range: these weights have 1 to {model.config.stages}")
        if self.config.insist and model.rain_means is None:
            raise UsageError("insist: these weights do not say what rain is to them; leave it out")
        if self.config.insist and self.stages == 1:
            raise UsageError("insist: the first unit only looks how much it rains; run 2 stages or more")
        native = is_native(model.config, self.device, self.precision)
        self._insist, self._insisting = 0.0, None
        if self.config.insist == "auto":
            self._insisting = Engine(model, replace(self.config, insist=THEN_INSISTED))  # warns for both
        else:
            self._insist = self.config.insist
            if not native and is_slow_in(self.precision, self.device):
                log.warning(SLOW)
        self._weights = model
        self._budget = Budget(model.config.channels, self.config, self.device, self.precision, native)
        self._native = NativeNetwork(model)
        self._torch: TorchNetwork | None = None

    def derain(self, image: Pixels) -> Pixels:
        """Derains one picture.

        Args:
            image: (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1].

        Returns:
            A new array of the same shape and dtype.

        Raises:
            ImageError: the array is of another kind, or holds values that are not finite or on another scale.
            OutOfMemoryError: not even a small tile fits into memory.
        """
        return self.derain_batch([image])[0]

    def derain_batch(self, images: Sequence[Pixels], report: Report | None = None, beside: int = 1) -> list[Pixels]:
        """Derains several pictures: on a GPU neighbours of one size share a forward; see also `beside`.

        Args:
            images: each as for `derain`.
            report: is told of the progress, which takes minutes for a large picture.
            beside: by how many of its calls, this one included, a CPU is shared: see `Engine.beside`.

        Returns:
            New arrays, as from `derain`, which raises the same errors.
        """
        for image in images:
            _check(image)
        if beside == 1 and len(images) > 1:
            room = self.beside(*max((image.shape[:2] for image in images), key=math.prod))
            if room > 1:
                return self._derain_beside(images, min(room, len(images)), part_of(report, 0, 1))
        with compiled.on_threads(compiled.share_of(beside)):
            return self._derain_in_turn(images, report)

    def _derain_beside(self, images: Sequence[Pixels], number: int, report: Report) -> list[Pixels]:
        """Pictures, by so many at the same time."""
        results = list(images)

        def derain(turn: int, part: Report) -> None:
            with compiled.on_threads(compiled.share_of(number)):
                (results[turn],) = self._derain_in_turn([images[turn]], part)

        work_beside([partial(derain, turn) for turn in range(len(images))], number, report)
        return results

    def _derain_in_turn(self, images: Sequence[Pixels], report: Report | None) -> list[Pixels]:
        """Pictures, one after the other, or those of one size together."""
        results: list[Pixels] = []
        while len(results) < len(images):
            start = len(results)
            first = images[start]
            stop = start + 1
            while stop < min(start + self.batch_size(*first.shape[:2]), len(images)) and _alike(first, images[stop]):
                stop += 1
            group = images[start:stop]
            pixels = first.shape[0] * first.shape[1]
            most = pixels.bit_length()  # more than a picture can be shrunk to
            levels = count_levels(pixels) if self.config.pyramid == "auto" else min(self.config.pyramid, most)
            part = part_of(report, start / len(images), stop / len(images))
            once = part if self._insisting is None else part_of(part, 0, 0.5)
            derained = self._derain_levels(group, self._rain_of_levels(first, levels), pixels, once)
            results += self._insisted_on(group, derained, part_of(part, 0.5, 1))
        return results

    def _insisted_on(self, images: Sequence[Pixels], derained: list[Pixels], report: Report) -> list[Pixels]:
        """What came out of pictures, or, with `insist` of `auto`, what insisting makes of those that hardly changed."""
        if self._insisting is None:
            return derained
        hardly = [mean_change(image, result) < HARDLY_CHANGED for image, result in zip(images, derained)]
        again = iter(self._insisting.derain_batch(list(compress(images, hardly)), report))
        return [next(again) if unchanged else result for result, unchanged in zip(derained, hardly)]

    def rain_means(self, pairs: Sequence[tuple[Pixels, Pixels]]) -> NDArray[np.float32]:
        """What attention pools without and with rain, on average, in fp32: see `SAPNet.rain_means`.

        Args:
            pairs: rainy and clean, each as for `derain`, and small enough to be computed in one; the network has
                attention.

        Returns:
            (2, stages, pools of a unit, C).
        """
        pooled = np.mean([[self._pooled(clean), self._pooled(rainy)] for rainy, clean in pairs], axis=0)
        means: NDArray[np.float32] = pooled.reshape(2, self.stages, -1, self._weights.config.channels)
        return means.astype(np.float32)

    def _pooled(self, picture: Pixels) -> NDArray[np.float32]:
        """All vectors that attention pools of a picture, in order."""
        forward = self._begin("fp32", [picture])
        forward.units(self.stages)
        on_cpu = (vector if isinstance(vector, np.ndarray) else vector.cpu().numpy() for vector in forward.pooled)
        return np.stack(list(on_cpu))

    def batch_size(self, height: int, width: int) -> int:
        """How many pictures of a size share one forward; 1 for those that are tiled, turned, or insisted on."""
        if self.config.tta or self._insist:
            return 1
        tile, batch = self._budget.plan(height, width, height * width)
        return batch if tile == 0 or max(height, width) <= tile else 1

    def beside(self, height: int, width: int) -> int:
        """How many pictures of a size take least time at the same time, each by its share of the cores; often 1.

        Threads that share a picture wait for each other at the end of each layer, and no other thread may take a core
        from them without all of them waiting for it.
        """
        return self._budget.pictures_beside(height, width)

    def _derain_levels(
        self, images: Sequence[Pixels], rain: Sequence[float], of_pixels: int, report: Report
    ) -> list[Pixels]:
        """Pictures of one size, then what is left in them at a quarter of it, and so on; `rain` is of each level."""
        derain = self._derain_turned if self.config.tta else self._derain_alike
        if len(rain) == 1 or max(images[0].shape[:2]) < FACTOR:
            return derain(images, rain[0], of_pixels, report)
        finest = 1 - 1 / FACTOR**2
        results = derain(images, rain[0], of_pixels, part_of(report, 0, finest))
        coarse = [shrink(result) for result in results]
        beside = of_pixels * 3 // 2  # this level's picture and result, in floats, take half of what the finest's do
        derained = self._derain_levels(coarse, rain[1:], beside, part_of(report, finest, 1))
        for result, before, after in zip(results, coarse, derained):
            add_enlarged(result, after - before)
        return results

    def _rain_of_levels(self, image: Pixels, levels: int) -> list[float]:
        """How much rain a picture has at least, to each of its levels: the most that it and finer ones see in it.

        The finest sees for itself; a coarser one is not given the picture but what finer ones left of it.
        """
        rain = [-math.inf] * levels
        if self._insist and levels > 1:
            of_pixels = image.shape[0] * image.shape[1]
            most = self._rain(image, of_pixels)
            for level in range(1, levels):
                if max(image.shape[:2]) < FACTOR:
                    break
                image = shrink(image)
                rain[level] = most = max(most, self._rain(image, of_pixels))
        return rain

    def _rain(self, image: Pixels, of_pixels: int) -> float:
        """How much rain the first unit sees in a picture, or in windows that stand for it, in fp32."""
        room = self._budget.pixels_in_strips(of_pixels, "fp32")
        if image.shape[0] * image.shape[1] <= room:
            forward = self._begin("fp32", [image])
        else:
            sample = choose_sample(image, room)
            windows = [image[sample.plan.seen(tile)] for tile in sample.tiles]
            forward = self._begin("fp32", windows, [tile.core_in_window for tile in sample.tiles])
        forward.unit(0)
        return cast(Insistence, forward.insistence).seen

    def _derain_turned(self, images: Sequence[Pixels], rain: float, of_pixels: int, report: Report) -> list[Pixels]:
        """The mean over views of one picture: flips, and turns where the network knows them."""
        (image,) = images
        turns_known = (0, 2) if self._weights.config.upright else range(4)
        views = [(turns, mirrored) for mirrored in (False, True) for turns in turns_known]
        pixels = to_float(to_batch(images)[0])
        total = np.zeros_like(pixels)
        for index, (turns, mirrored) in enumerate(views):
            view = np.rot90(pixels, turns)
            view = np.ascontiguousarray(view[:, ::-1] if mirrored else view)
            part = part_of(report, index / len(views), (index + 1) / len(views))
            result = self._derain_alike([view], rain, of_pixels, part)[0]
            total += np.rot90(result[:, ::-1] if mirrored else result, -turns)
        return [to_pixels(total / np.float32(len(views)), image.dtype)]

    def _derain_alike(self, images: Sequence[Pixels], rain: float, of_pixels: int, report: Report) -> list[Pixels]:
        """Derains pictures of one size; where memory runs out, halves the batch, then the tile, and tries again."""
        height, width = images[0].shape[:2]
        tile, batch = self._budget.plan(height, width, of_pixels)
        room = max(batch * tile**2, self._budget.pixels(of_pixels))  # of the sample for shared statistics
        exact = self.config.tile_statistics == "exact" or self._budget.is_exact(height, width, of_pixels)
        while True:
            try:
                plan = self._cut(height, width, tile, batch, of_pixels)
                if len(plan.tiles) == 1 or exact:
                    groups = in_groups(images, batch, report)
                    return [pixels for group, part in groups for pixels in self._derain_whole(group, rain, part)]
                return [self._derain_tiled(image, rain, plan, batch, room, report) for image in images]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                import torch

                torch.cuda.empty_cache()
            if batch > 1:
                batch //= 2
            else:
                tile = min(tile or max(height, width), max(height, width)) // 2
            if tile and tile < max(SMALLEST_TILE // 2, 2 * self.config.overlap + 1):
                raise OutOfMemoryError(
                    "not even a small tile fits into memory; close other programs or use --device cpu"
                )
            exact, room = False, batch * tile**2
            log.warning("out of memory: trying again with tiles of %d px in batches of %d", tile, batch)

    def _cut(self, height: int, width: int, tile: int, batch: int, of_pixels: int) -> TilePlan:
        """Tiles of a given side, or where nobody gave one, of as many pixels; 0 is the whole picture."""
        overlap = self.config.overlap
        if self.config.tile != "auto" or not tile:
            return plan_tiles(height, width, tile, overlap if tile else 0)
        beside = self._budget.tiles_beside(batch * tile**2, of_pixels)
        return fit_tiles(height, width, tile**2, overlap, batch * beside)

    def _derain_whole(self, images: Sequence[Pixels], rain: float, report: Report) -> list[Pixels]:
        """Pictures of one size: on a GPU several, or a small one, by the plain network, else each layer by layer.

        The plain network insists on nothing.
        """
        small = self.device.type == "cuda" and images[0].size // 3 <= GPU_PIXELS
        if self.device.type == "cpu" or self._insist or (len(images) == 1 and not small):
            return [self._forward(image, rain, report) for image in images]
        return self._finite(lambda precision: self._by_torch().derain_plain(precision, images))

    def _derain_tiled(
        self, image: Pixels, rain: float, plan: TilePlan, batch: int, room: int, report: Report
    ) -> Pixels:
        give_back_freed_memory()
        sample = choose_sample(image, room) if self._weights.config.attention else None
        beside = self._budget.tiles_beside(batch * math.prod(plan.window), image.shape[0] * image.shape[1])

        def compute(precision: str) -> Pixels:
            network = self._network(precision)

            def begin(*arguments: Any) -> Windows:
                return network.begin_windows(precision, *arguments, insistence=self._insistence(network, rain))

            tiled = TiledForward(begin, network.ranging(precision), image, plan, batch, beside, sample)
            return tiled.run(self.stages, report)

        result = self._finite(compute)
        give_back_freed_memory()  # a file is yet to be encoded
        return result

    def _forward(self, image: Pixels, rain: float, report: Report) -> Pixels:
        """One picture by its own statistics."""

        def compute(precision: str) -> Pixels:
            forward = self._begin(precision, [image], rain=rain)
            forward.units(self.stages, report)
            return forward.pixels(image.dtype)[0]

        return self._finite(compute)

    def _finite(self, compute: Callable[[str], Result]) -> Result:
        """Computes in the chosen precision, and again in fp32 where that gives values that are not finite."""
        for precision in dict.fromkeys((self.precision, "fp32")):
            try:
                return compute(precision)
            except FloatingPointError:
                log.info("not finite in %s", precision)
        raise ImageError("the network gives values that are not finite for this image")

    def _begin(
        self, precision: str, images: Sequence[Pixels], cores: Cores | None = None, rain: float = -math.inf
    ) -> Forward[Any]:
        """A forward over pictures of one size, or windows of one, that has at least so much rain."""
        network = self._network(precision)
        return network.begin(precision, images, cores, self._insistence(network, rain))

    def _insistence(self, network: NativeNetwork | TorchNetwork, rain: float) -> Insistence | None:
        return network.insistence(self._insist, rain) if self._insist else None

    def _network(self, precision: str) -> NativeNetwork | TorchNetwork:
        """What computes in a precision."""
        return self._native if is_native(self._weights.config, self.device, precision) else self._by_torch()

    def _by_torch(self) -> TorchNetwork:
        if self._torch is None:
            from sapnet_cli.engine.network import TorchNetwork

            self._torch = TorchNetwork(self._weights, self.stages, self.device)
        return self._torch


def _alike(first: Pixels, second: Pixels) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype


def _check(image: Pixels) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"expected an array of shape (height, width, 3), got {image.shape}")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"expected uint8, uint16 or float32 values, got {image.dtype}")
    if image.dtype == np.float32:
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError("the image holds values that are not finite")
        if low < -FLOAT_MARGIN or high > 1 + FLOAT_MARGIN:
            raise ImageError(f"expected floats in [0, 1], got {low:g} to {high:g}; divide by what stands for white")
