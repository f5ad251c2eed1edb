"""A run of `sapnet train`: plans it, reads the data, says how it goes, and stops when it is to."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from sapnet_cli.cli.output import Output, hear_signals
from sapnet_cli.errors import SapnetError, UsageError
from sapnet_cli.files import identity

if TYPE_CHECKING:
    from sapnet_cli.data.sets import TrainingData
    from sapnet_cli.training.plan import Changes, Plan
    from sapnet_cli.training.processes import Processes
    from sapnet_cli.training.trainer import Report, Runtime

LINES_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal to show a bar on."""


def run_training(
    changes: Changes,
    output: Path | None,
    resume: bool,
    device: str,
    dry_run: bool,
    out: Output,
    runtime: Runtime,
    keep: int,
) -> None:
    """Begins a run or goes on with one, until its budget is spent or the user ends it.

    Args:
        changes: what the user wants otherwise than the recipe, or the run so far, has it.
        output: folder of the run; None for one named after the data.
        resume: go on with the run in that folder.
        device: as `--device` takes it.
        dry_run: only read the data and say what it holds.
        out: says how it goes.
        runtime: what makes no difference to the weights.
        keep: checkpoints to keep.

    Raises:
        UsageError: there is nothing to learn from, or the folder holds a run, or none, where it should not.
        SapnetError: the data cannot be read, or the run failed.
        typer.Exit: the user ended it; the last step is saved.
    """
    from sapnet_cli.training.plan import build_loss, build_trainer, plan_resumed, plan_run
    from sapnet_cli.training.processes import join_processes, leave_processes
    from sapnet_cli.training.run_folder import RunFolder

    if output is None:
        named = [name for key in ("data", "clean") for name, _ in changes.data.get(key, ())]
        if not named:
            raise UsageError("name the folder of the run with --output, or what to learn from with --data")
        output = Path("runs") / identity(Path(named[0])).stem
    folder = RunFolder(output, keep)

    def start() -> tuple[Plan, dict[str, Any] | None]:
        if resume and folder.was_begun:
            if not dry_run:
                folder.claim()
            return plan_resumed(folder, changes), folder.load() if folder.holds_run else None
        if resume and not (changes.data.get("data") or changes.data.get("clean")):
            raise UsageError(f"{output} holds no run to go on with; name its folder with --output")
        if folder.holds_run and not dry_run:
            raise UsageError(f"{output} holds a run already; add --resume to go on with it, or name another --output")
        return plan_run(changes), None

    processes = join_processes(device)
    try:
        plan, state = processes.share(start)
        loss = build_loss(plan)
        data = _load(plan, processes, out)
        if dry_run:
            return
        trainer = build_trainer(plan, data, loss, folder, processes, runtime, state)
        budget, precision = plan.training.budget, trainer.learner.precision_name
        steps = f", {trainer.iterations} steps" if trainer.iterations and budget.unit != "iterations" else ""
        out.info(
            f"{'going on' if trainer.iteration else 'training'}: recipe {plan.training.recipe}, {budget.amount:g} "
            f"{budget.unit}{steps}, on {processes.count} x {processes.device.type} in {precision}, "
            f"into {output}" + (f", from step {trainer.iteration}" if trainer.iteration else "")
        )
        reporter = _Reporter(out)
        with _Signals(out) as signals, out.progress(1.0, "training", counted=False):

            def goes_on(progress: float) -> bool:
                reporter.moved(progress)
                return not signals.number

            try:
                finished = trainer.run(reporter, goes_on)
                where = f"step {trainer.iteration} is saved in {output}, go on with --resume"
            except SapnetError:
                raise
            except Exception:  # Ctrl-C ends the compiler of a step, too, which fails before that is done
                if not signals.number:
                    raise
                finished = False
                where = f"{output} holds the last checkpoint, go on with --resume"
                if not folder.holds_run:
                    where = "no step was done yet, begin again with --resume"
        if finished:
            best = f", best at validation: {trainer.best:.2f} dB in best.safetensors" if trainer.scores else ""
            out.info(f"done: {output}/final.safetensors{best}")
        else:
            out.error(f"{'interrupted' if signals.number == signal.SIGINT else 'terminated'}; {where}")
            raise typer.Exit(128 + signals.number)
    finally:
        leave_processes()


def _load(plan: Plan, processes: Processes, out: Output) -> TrainingData:
    """Reads the data, and says what it found."""
    from sapnet_cli.data.sets import load_data
    from sapnet_cli.engine.hardware import CPU, free_memory

    free = free_memory(CPU)
    with out.progress(1.0, "reading pictures", counted=False):
        data = load_data(
            plan.data, free, lambda name, done, total: out.advance(done / total, f"{done} of {total} in {name}")
        )
    shown = len(data.problems) if out.verbose else 5
    for problem in data.problems[:shown]:
        out.warn(problem)
    if len(data.problems) > shown:
        out.warn(f"and {len(data.problems) - shown} more problems with pairs; --verbose names them all")
    for line in data.summary:
        out.info(line)
    if not data.validation:
        out.warn("nothing is held out, so that nothing will say how good the weights are; see --val and --held-out")
    return data


class _Reporter:
    """Says how training goes: on a bar, in lines now and then where there is none, and in JSON."""

    def __init__(self, out: Output) -> None:
        self._out, self._spoke, self._status = out, 0.0, ""

    def __call__(self, report: Report) -> None:
        metrics, out = report.metrics, self._out
        out.json({**metrics, "progress": round(report.progress, 6)})
        if report.validation:
            ssim = f" / {metrics['ssim']:.4f}" if "ssim" in metrics else ""
            rainy = metrics["psnr_rainy"]
            out.info(f"step {report.iteration}: validation {metrics['psnr']:.2f} dB{ssim} (rainy input {rainy:.2f} dB)")
            return
        terms = ", ".join(
            f"{name} {metrics[name]:.4f}"
            for name in ("ssim", "l1", "psnr", "stages", "pcl", "lpips", "ubs")
            if name in metrics
        )
        self._status = status = f"step {report.iteration}, {terms}, {metrics['images_per_second']:.1f} images/s"
        if not out.shows_bar and time.monotonic() - self._spoke > LINES_EVERY:
            self._spoke = time.monotonic()
            left = report.seconds_left
            ahead = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.1f} min"
            out.info(f"{100 * report.progress:.1f} %, {status}, {ahead} left")

    def moved(self, progress: float) -> None:
        """A step is done."""
        self._out.advance(progress, self._status)


class _Signals:
    """Turns Ctrl-C, SIGTERM or SIGHUP into a wish to stop after the step; Ctrl-C after that stops at once."""

    def __init__(self, out: Output) -> None:
        self._out, self.number = out, 0

    def __enter__(self) -> _Signals:
        self._before = hear_signals(self._note, signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.number = number
        self._out.info("saving after this step; Ctrl-C again stops at once")


def compare_steps(changes: Changes, device: str, compiled: bool | None, out: Output) -> None:
    """Times our step against the authors' and says what came out."""
    from sapnet_cli.training.benchmark import time_steps
    from sapnet_cli.training.learner import choose_training_precision
    from sapnet_cli.training.plan import build_features, build_loss, build_segmentation, plan_run
    from sapnet_cli.training.processes import join_processes
    from sapnet_cli.training.trainer import COMPILE_ITERATIONS, compiling_pays

    plan, processes = plan_run(changes, needs_data=False), join_processes(device)
    config, losses = plan.training, plan.training.losses
    precision = choose_training_precision(config.precision, processes.device, config.model)
    if compiled is None:  # as in a long run
        compiled = compiling_pays(config, COMPILE_ITERATIONS, processes.device, precision)
    features = (lambda: build_features(plan)) if losses.pcl or losses.lpips else None
    segmentation = (lambda: build_segmentation(plan)) if losses.ubs else None
    timing = time_steps(config, build_loss(plan), processes, precision, compiled, segmentation, features)
    on = ", ".join(name for name in ("ssim", "l1", "psnr", "pcl", "lpips", "ubs") if getattr(losses, name))
    how = f"{timing.precision}{', compiled' if compiled else ''}"
    ours, authors = config.batch / timing.ours, config.batch / timing.authors
    out.json({"ours": ours, "authors": authors, "ratio": ours / authors, "precision": timing.precision, "losses": on})
    out.info(f"{config.batch} crops of {config.patch}x{config.patch} a step, losses {on}, on {processes.device.type}:")
    out.info(f"  the authors' loop   {authors:8.2f} images/s (fp32)")
    out.info(f"  sapnet              {ours:8.2f} images/s ({how}), {ours / authors:.2f} times as many")
