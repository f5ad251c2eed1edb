"""The loop that turns pairs into weights."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.data.crops import BatchRequest, CropLoader, CropSampler
from sapnet_cli.data.sets import TrainingData, ValidationPicture
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.errors import CheckpointError, SapnetError, UsageError
from sapnet_cli.losses.joint import JointLoss
from sapnet_cli.metrics.fidelity import HIGHEST_PSNR, SMALLEST_SSIM_SIDE, psnr, structural_similarity
from sapnet_cli.model import learning
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.card import model_card
from sapnet_cli.training.config import TrainingConfig
from sapnet_cli.training.learner import Learner, choose_training_precision
from sapnet_cli.training.processes import Processes
from sapnet_cli.training.run_folder import BEST, FINAL, RunFolder

REPORT_EVERY = 20
"""Iterations between two lines of metrics; losses are looked at no more often, so that a GPU never waits for it."""

DIVERGED = 1.0
"""Mean absolute error of the output above which training has failed: a black picture is nearer to any photo."""

COMPILE_MINUTES, COMPILE_ITERATIONS = 20, 3000
"""Budgets from which `torch.compile` pays: a minute or more for each shape of step, which is then a fifth faster on a
CPU."""

SAMPLES = 4

RAINY_PICTURES, RAINY_SIDE = 8, 256
"""Of what is held out, that show what rain is to the weights' attention, and so many pixels of each side of them."""


@dataclass(frozen=True)
class Runtime:
    """How the work is done, which does not change what is learnt but for rounding.

    Attributes:
        workers: threads that draw crops ahead.
        compile: whether the network goes through `torch.compile`; None where it pays.
        save_every: seconds between two checkpoints.
    """

    workers: int = 2
    compile: bool | None = None
    save_every: float = 120.0


@dataclass(frozen=True)
class Report:
    """What the loop says of itself.

    Attributes:
        iteration: steps done.
        progress: part of the budget that is spent, 0 to 1.
        metrics: what has just been measured, by name; the same as in `metrics.jsonl`.
        seconds_left: estimate.
        validation: whether this is a validation; otherwise, the means of the last steps.
    """

    iteration: int
    progress: float
    metrics: Mapping[str, Any]
    seconds_left: float
    validation: bool = False


class DivergedError(SapnetError):
    """The loss is not finite, or the output is farther from the ground truth than black; the run ends."""


class Trainer:
    """One run: its network, optimisers, averaged weights and position in the budget."""

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        loss: JointLoss,
        folder: RunFolder,
        processes: Processes,
        runtime: Runtime | None = None,
        start: SAPNet | None = None,
    ) -> None:
        """Sets up a run at its beginning.

        Args:
            config: what decides the run.
            data: what is learnt from.
            loss: what is minimised.
            folder: where the first process writes.
            processes: this one and its fellows.
            runtime: how the work is done.
            start: weights to begin with instead of random ones; of the network that `config` says.
        """
        self.config, self.data, self.folder, self.processes = config, data, folder, processes
        self.runtime = runtime or Runtime()
        self.iterations = planned_iterations(config, data.pixels, processes.count)
        precision = choose_training_precision(config.precision, processes.device, config.model)
        compiled = self.runtime.compile
        if compiled is None:
            compiled = compiling_pays(config, self.iterations, processes.device, precision)
        self.learner = Learner(config, loss, processes, precision, compiled, start)
        self.iteration, self.seconds, self.validated, self.best = 0, 0.0, 0, -math.inf
        self.scores: dict[str, float] = {}
        self._loader = CropLoader(
            CropSampler(data.sources, data.cache, config.seed, config.augmentation), self.runtime.workers
        )
        self._pending: list[tuple[Tensor, Mapping[str, Tensor]]] = []
        self._crops, self._reported = 0, time.perf_counter()

    @property
    def progress(self) -> float:
        """Part of the budget that is spent, 0 to 1."""
        if self.iterations is not None:
            return min(1.0, self.iteration / self.iterations)
        return min(1.0, self.seconds / (60 * self.config.budget.amount))

    def run(self, report: Callable[[Report], None], goes_on: Callable[[float], bool] = lambda progress: True) -> bool:
        """Trains until the budget is spent or somebody interrupts.

        Writes checkpoints, metrics, samples and, at the end, the weights.

        Args:
            report: is told of every `REPORT_EVERY` steps and of each validation.
            goes_on: is told the progress after each step, and asked whether to go on.

        Returns:
            Whether the budget is spent; if not, the run can be taken up.

        Raises:
            DivergedError: the last checkpoint is from before.
            SapnetError: the folder cannot be written, or a picture cannot be read any more.
        """
        began = time.perf_counter() - self.seconds
        saved, progress, stop = time.perf_counter(), self.progress, False
        self._reported = time.perf_counter()
        try:
            while progress < 1 and not stop:
                self.step(progress)
                self.seconds = time.perf_counter() - began
                progress = self.progress
                stop = not goes_on(progress)
                at_round = self.iteration % REPORT_EVERY == 0
                if self.iterations is None or at_round:
                    progress, stop = self.processes.agree(progress, stop)
                elif self.processes.count > 1:
                    stop = False  # all stop together, at the next round
                due = self._validations_until(progress)
                validates, ends = due > self.validated and not stop, stop or progress >= 1
                if at_round or validates or ends or self.iteration == 1:
                    self._report(progress, report)  # raises before a bad state is saved
                if validates:
                    self.validated = due
                    self._validate(progress, report)
                late = at_round and time.perf_counter() - saved > self.runtime.save_every
                if self.processes.first and (ends or validates or late):
                    self.folder.save(self.state(), self.iteration)
                    saved = time.perf_counter()
            if progress >= 1 and self.processes.first:
                model = self._with_rain_means(self.learner.averaged_model())
                self.folder.write_weights(FINAL, model, self._card("the end of the run"))
        finally:
            self._loader.close()
            self.folder.close()
        return progress >= 1

    def step(self, progress: float) -> None:
        """One optimisation step at a position in the budget, 0 to 1."""
        shape = self.config.shape(progress)
        request = BatchRequest(self.iteration, self.processes.rank * shape.batch, shape.batch, shape.patch)
        last = None if self.iterations is None else self.iterations - 1
        rainy, clean = self._loader.get(request, last)
        self._pending.append(self.learner.learn(rainy, clean, shape.stages, progress))
        self._crops += shape.batch * self.processes.count
        self.iteration += 1

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened.

        Crops need no more than the iteration, since each is drawn by a generator of its own.
        """
        return {
            **self.learner.state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "validated": self.validated,
            "best": self.best,
            "scores": self.scores,
            "data": self.data.fingerprint,
            "processes": self.processes.count,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes up a run where `state` was taken; its budget, which the schedule is stretched over, may be another.

        Raises:
            UsageError: the pictures are not those that the run began with.
            CheckpointError: the state is of another network or program.
        """
        try:
            if state["data"] != self.data.fingerprint:
                raise UsageError("the training pictures are not those that this run began with; begin another run")
            if state["processes"] != self.processes.count:
                raise UsageError(
                    f"this run began with {state['processes']} processes, now there are {self.processes.count}; "
                    "go on with as many, or begin another run"
                )
            self.learner.load_state(state)
            self.iteration, self.seconds = state["iteration"], state["seconds"]
            self.best, self.scores = state["best"], state["scores"]
            self.validated = min(state["validated"], self._validations_until(self.progress))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"the checkpoint is of another network or version ({error})") from error
        if self.processes.first:
            self.folder.rewind(self.iteration)

    def _validations_until(self, progress: float) -> int:
        return math.floor(progress * self.config.validations + 1e-9)

    def _check_losses(self) -> dict[str, float]:
        """Means over the steps since the last look, over all processes.

        Raises:
            DivergedError: they are beyond hope.
        """
        names = sorted({name for _, terms in self._pending for name in terms})
        means = [torch.stack([total for total, _ in self._pending]).mean()]
        means += [torch.stack([terms[name] for _, terms in self._pending if name in terms]).mean() for name in names]
        values = self.processes.average(torch.stack(means)).tolist()
        self._pending = []
        losses = dict(zip(("loss", *names), values))
        bad = next((name for name, value in losses.items() if not math.isfinite(value)), None)
        if bad is not None or losses["l1"] > DIVERGED:
            what = f"{bad} is not finite" if bad else f"the mean error of the output is {losses['l1']:.2f}"
            kept = f"{self.folder.path}/last.ckpt is from before" if self.folder.holds_run else "nothing was saved yet"
            raise DivergedError(
                f"training diverged by iteration {self.iteration}: {what}; {kept}; try a lower --learning-rate, or "
                "--clip 1, or --precision fp32"
            )
        return losses

    def _report(self, progress: float, report: Callable[[Report], None]) -> None:
        losses = self._check_losses()
        now = time.perf_counter()
        speed = self._crops / max(now - self._reported, 1e-9)
        self._crops, self._reported = 0, now
        metrics = {
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            **losses,
            "learning_rate": self.learner.rate(progress),
            "images_per_second": speed,
        }
        if self.processes.first:
            self.folder.add_metrics(metrics)
        report(Report(self.iteration, progress, metrics, self._seconds_left(progress)))

    def _seconds_left(self, progress: float) -> float:
        return self.seconds * (1 - progress) / progress if progress else math.inf

    def _validate(self, progress: float, report: Callable[[Report], None]) -> None:
        """Scores the averaged weights on what is held out; the other processes wait at their next step."""
        if not (self.processes.first and self.data.validation):
            return
        start = time.perf_counter()
        model = self.learner.averaged_model()
        engine = Engine(model, EngineConfig(device=str(self.processes.device), precision=self.learner.precision_name))
        pictures = self.data.validation
        derained = engine.derain_batch([picture.rainy for picture in pictures])
        self.scores = _score(pictures, derained)
        rows = [(each.rainy, result, each.clean) for each, result in list(zip(pictures, derained))[:SAMPLES]]
        self.folder.add_samples(self.iteration, rows)
        metrics = {"iteration": self.iteration, "seconds": round(self.seconds, 3), **self.scores}
        self.folder.add_metrics(metrics)
        if self.scores["psnr"] > self.best:
            self.best = self.scores["psnr"]
            self.folder.write_weights(BEST, self._with_rain_means(model), self._card("the best validation of the run"))
        report(Report(self.iteration, progress, metrics, self._seconds_left(progress), validation=True))
        self._reported += time.perf_counter() - start  # not charged to the speed of training

    def _with_rain_means(self, model: SAPNet) -> SAPNet:
        """The network with what rain is to its attention, for `derain --insist`, if any rain is held out."""
        rainy = [each for each in self.data.validation if (each.rainy != each.clean).any()]
        if rainy and model.config.attention:
            engine = Engine(model, EngineConfig(device=str(self.processes.device), precision="fp32"))
            chosen, part = rainy[:: math.ceil(len(rainy) / RAINY_PICTURES)], np.s_[:RAINY_SIDE, :RAINY_SIDE]
            pairs = [(each.rainy[part], each.clean[part]) for each in chosen]
            model.rain_means = torch.from_numpy(engine.rain_means(pairs))
        return model

    def _card(self, moment: str) -> str:
        return model_card(
            self.config, self.processes, self.data.summary, moment, self.iteration, self.seconds, self.scores
        )


def planned_iterations(config: TrainingConfig, pixels: int, processes: int) -> int | None:
    """Steps of a run, or None where a clock decides; an epoch's crops cover the training pictures once in area."""
    if config.budget.unit == "minutes":
        return None
    if config.budget.unit == "iterations":
        return max(1, round(config.budget.amount))
    return max(1, math.ceil(config.budget.amount * pixels / (config.patch**2 * config.batch * processes)))


def compiling_pays(
    config: TrainingConfig, iterations: int | None, device: torch.device, precision: torch.dtype
) -> bool:
    """Whether a run is long enough for `torch.compile`, and the machine able, in the precision that was chosen."""
    if learning.suits(config.model, device, precision):
        return False  # what is in C is faster
    if device.type == "mps" or (device.type == "cpu" and not (shutil.which("g++") or shutil.which("c++"))):
        return False
    if iterations is None:
        return config.budget.amount >= COMPILE_MINUTES
    return iterations >= COMPILE_ITERATIONS


def _score(pictures: Sequence[ValidationPicture], derained: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Mean Y-PSNR and SSIM of all pictures, of each set where there are several, and of the rainy pictures."""
    scores: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        scores.setdefault(name, []).append(min(value, HIGHEST_PSNR))

    several = len({picture.name for picture in pictures}) > 1
    for picture, result in zip(pictures, derained):
        value = psnr(result, picture.clean)
        note("psnr", value)
        note("psnr_rainy", psnr(picture.rainy, picture.clean))
        if several:
            note(f"psnr_{picture.name}", value)
        if min(picture.clean.shape[:2]) >= SMALLEST_SSIM_SIDE:
            note("ssim", structural_similarity(result, picture.clean))
    return {name: float(np.mean(values)) for name, values in scores.items()}
