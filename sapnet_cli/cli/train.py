"""`sapnet train`: pairs of rainy and clean photos in, weights out."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sapnet_cli.cli.derain import Precision
from sapnet_cli.cli.output import Output, exit_codes
from sapnet_cli.cli.process import importing
from sapnet_cli.cli.training import compare_steps, run_training
from sapnet_cli.cores import usable_cores
from sapnet_cli.errors import UsageError


class SideBySide(str, Enum):
    """Choices of --side-by-side."""

    clean_left = "clean-left"
    clean_right = "clean-right"


class Recipe(str, Enum):
    """Choices of --recipe."""

    default = "default"
    perceptual = "perceptual"
    paper = "paper"


class Optimizer(str, Enum):
    """Choices of --optimizer."""

    muon = "muon"
    adamw = "adamw"
    adam = "adam"


class Schedule(str, Enum):
    """Choices of --schedule."""

    cosine = "cosine"
    multistep = "multistep"


DATA, LOSSES, STEP, MACHINE, REPORTING = (
    "Data",
    "Losses (weights; 0 switches one off)",
    "Learning",
    "Machine",
    "Reporting",
)


def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="DIR[:WEIGHT]",
            help="Folder or CSV file of rainy and clean pairs; may be repeated, with the share of each in the crops.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run. (default: runs/ and the data's name)"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the run in this folder stopped, longer with another budget; begin it if there is none.",
        ),
    ] = False,
    recipe: Annotated[
        Recipe | None,
        typer.Option(
            help="What all other options start from: what works best here, that with all four losses of the paper, "
            "or the published recipe."
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Budget: how often crops cover the training pictures in area.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Budget: steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget: time. (default: 60; recipe paper: 100 epochs)")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="Begin with these weights, a name or a path, not random ones.")
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(
            "--clean", metavar="DIR[:WEIGHT]", help="Folder of clean photos to draw rain on.", rich_help_panel=DATA
        ),
    ] = None,
    rain_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="Folder of real rain layers, for half of the clean photos.", rich_help_panel=DATA
        ),
    ] = None,
    side_by_side: Annotated[
        SideBySide | None,
        typer.Option(help="How pictures hold both, in folders without pairs of files.", rich_help_panel=DATA),
    ] = None,
    val: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Pairs to validate on, never trained on.", rich_help_panel=DATA),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Without --val, fraction of each set's scenes to validate on. (default: 0.05)",
            rich_help_panel=DATA,
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror crops, to the sides and upside down.", rich_help_panel=DATA),
    ] = None,
    turn: Annotated[
        bool | None,
        typer.Option(
            "--turn/--no-turn", help="Turn crops by quarters: rain may come from any side.", rich_help_panel=DATA
        ),
    ] = None,
    recombine: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of crops with the rain of another pair.", rich_help_panel=DATA),
    ] = None,
    mix: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of crops with rain of any set on top: light with heavy.", rich_help_panel=DATA
        ),
    ] = None,
    faint: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of crops with weakened rain.", rich_help_panel=DATA)
    ] = None,
    fine: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of crops that are shrunk.", rich_help_panel=DATA)
    ] = None,
    coarse: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of crops whose rain is enlarged.", rich_help_panel=DATA),
    ] = None,
    enlarge: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of crops that are enlarged, rain and all.", rich_help_panel=DATA),
    ] = None,
    slant: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of crops whose rain is turned by up to 60 degrees.", rich_help_panel=DATA
        ),
    ] = None,
    partial: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of crops with rain on one side, or before what is dark.", rich_help_panel=DATA
        ),
    ] = None,
    patchwork: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of crops with a part of another scene, or of a plain bar.", rich_help_panel=DATA
        ),
    ] = None,
    dim: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of crops that are darkened and tinted.", rich_help_panel=DATA),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of crops with a sensor's noise, which stays.", rich_help_panel=DATA),
    ] = None,
    ssim: Annotated[float | None, typer.Option(help="Negative SSIM.", rich_help_panel=LOSSES)] = None,
    l1: Annotated[float | None, typer.Option(help="Mean absolute error.", rich_help_panel=LOSSES)] = None,
    psnr: Annotated[
        float | None, typer.Option(help="Negative PSNR of each crop, in dB.", rich_help_panel=LOSSES)
    ] = None,
    luma: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of SSIM and PSNR that is of Y, which benchmarks score.", rich_help_panel=LOSSES
        ),
    ] = None,
    pcl: Annotated[float | None, typer.Option(help="Perceptual contrast, VGG-16.", rich_help_panel=LOSSES)] = None,
    lpips: Annotated[float | None, typer.Option(help="LPIPS, VGG-16.", rich_help_panel=LOSSES)] = None,
    ubs: Annotated[
        float | None, typer.Option(help="Background segmentation, ResNet-101 or -50.", rich_help_panel=LOSSES)
    ] = None,
    ubs_from: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Part of the budget after which it joins.", rich_help_panel=LOSSES),
    ] = None,
    stage_loss: Annotated[
        float | None, typer.Option(help="Error of the earlier units' images.", rich_help_panel=LOSSES)
    ] = None,
    halfway: Annotated[
        float | None, typer.Option(help="Negative PSNR after half of the units.", rich_help_panel=LOSSES)
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder with vgg16.safetensors and resnet101.safetensors; else SAPNET_BACKBONES, the cache, the Hub.",
            rich_help_panel=LOSSES,
        ),
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(min=16, help="Side of the crops, in pixels.", rich_help_panel=STEP)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Crops a step, for each process.", rich_help_panel=STEP)
    ] = None,
    stages: Annotated[
        int | None, typer.Option(min=1, max=100, help="Units of the network.", rich_help_panel=STEP)
    ] = None,
    optimizer: Annotated[
        Optimizer | None, typer.Option(help="muon: for the 3x3 kernels, with Adam.", rich_help_panel=STEP)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Peak of Adam's.", rich_help_panel=STEP)] = None,
    muon_learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Peak of Muon's.", rich_help_panel=STEP)
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Of the learning rates.", rich_help_panel=STEP)] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, max=1, help="Part of the budget over which they rise.", rich_help_panel=STEP)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(min=0, help="Largest norm of the gradient; 0 for any.", rich_help_panel=STEP)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(min=0, max=0.99999, help="Decay of the averaged weights.", rich_help_panel=STEP)
    ] = None,
    progressive: Annotated[
        bool | None,
        typer.Option(
            "--progressive/--constant",
            help="Few units and small crops first, or the same step throughout.",
            rich_help_panel=STEP,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Of weights, crops and rain.", rich_help_panel=STEP)
    ] = None,
    validations: Annotated[
        int | None, typer.Option(min=0, help="How often to validate over the run.", rich_help_panel=STEP)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MACHINE)] = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Of forward and backward; weights are fp32.", rich_help_panel=MACHINE)
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute/--keep-activations",
            help="Save memory in the backward pass, for a third more time. (default: where memory asks for it)",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    compile: Annotated[  # noqa: A002
        bool | None,
        typer.Option("--compile/--no-compile", help="torch.compile. (default: where it pays)", rich_help_panel=MACHINE),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Threads that prepare crops. (default: one a core, at most 4)", rich_help_panel=MACHINE
        ),
    ] = None,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between checkpoints.", rich_help_panel=MACHINE)
    ] = 120.0,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep.", rich_help_panel=MACHINE)] = 3,
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="Only time this step against the authors' own, side by side on random crops, and write nothing.",
            rich_help_panel=REPORTING,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the data, say what would be done, and stop.", rich_help_panel=REPORTING),
    ] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Metrics as JSON lines on standard output.", rich_help_panel=REPORTING)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=REPORTING)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Name every bad pair.", rich_help_panel=REPORTING)
    ] = False,
) -> None:
    """Train weights on pairs of rainy and clean photos.

    sapnet train --data pairs/ --minutes 60 -o runs/mine

    sapnet derain photos/ -o clean/ --weights runs/mine/best.safetensors

    Several GPUs or machines: torchrun --nproc-per-node N -m sapnet_cli train ...

    Exit codes: 0 done, 1 failed or diverged, 2 wrong usage, 130 interrupted (saved; go on with --resume).
    """
    with exit_codes("what was saved is whole, go on with --resume"):
        speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, the first
        out = Output(quiet=quiet or not speaks, verbose=verbose, json_lines=json_lines and speaks)
        budgets = [
            (each, unit)
            for each, unit in ((epochs, "epochs"), (iterations, "iterations"), (minutes, "minutes"))
            if each is not None
        ]
        if len(budgets) > 1:
            raise UsageError("--epochs, --iterations and --minutes are three ways to say one thing; give one of them")

        with importing():
            from sapnet_cli.imaging.read import prepare_decoders
            from sapnet_cli.training.config import Budget, Phase
            from sapnet_cli.training.plan import Changes
            from sapnet_cli.training.trainer import Runtime

        prepare_decoders()
        changes = Changes(
            recipe.value if recipe else None,
            _given(
                data=_weighted(data),
                clean=_weighted(clean),
                rain_layers=tuple(rain_layers) if rain_layers else None,
                side_by_side=side_by_side.value if side_by_side else None,
                validation=tuple(val) if val else None,
                held_out=held_out,
                seed=seed,
            ),
            _given(
                budget=Budget(float(budgets[0][0]), budgets[0][1]) if budgets else None,  # type: ignore[arg-type]
                patch=patch_size,
                batch=batch_size,
                phases=(Phase(1.0),) if progressive is False else None,
                losses=_given(
                    ssim=ssim,
                    l1=l1,
                    psnr=psnr,
                    luma=luma,
                    pcl=pcl,
                    lpips=lpips,
                    ubs=ubs,
                    ubs_from=ubs_from,
                    stages=stage_loss,
                    halfway=halfway,
                ),
                augmentation=_given(
                    flip=flip,
                    turn=turn,
                    recombine=recombine,
                    mix=mix,
                    faint=faint,
                    fine=fine,
                    coarse=coarse,
                    enlarge=enlarge,
                    slant=slant,
                    partial=partial,
                    patchwork=patchwork,
                    dim=dim,
                    noise=noise,
                ),
                optimizer=optimizer.value if optimizer else None,
                learning_rate=learning_rate,
                muon_learning_rate=muon_learning_rate,
                schedule=schedule.value if schedule else None,
                warmup=warmup,
                clip=clip,
                ema=ema,
                seed=seed,
                validations=validations,
                precision=precision.value if precision else None,
                recompute=recompute,
                model=_given(stages=stages),
            ),
            weights,
            backbones,
        )
        if benchmark:
            compare_steps(changes, device, compile, out)
            return
        run_training(
            changes,
            output,
            resume,
            device,
            dry_run,
            out,
            Runtime(
                workers=min(4, usable_cores()) if workers is None else workers, compile=compile, save_every=save_every
            ),
            keep,
        )


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in options.items() if value is not None and value != {}}


def _weighted(folders: list[str] | None) -> tuple[tuple[str, float], ...] | None:
    """`DIR:2` to a folder and its weight; a folder that is really called so is taken as it is."""
    if not folders:
        return None
    pairs = []
    for folder in folders:
        name, colon, number = folder.rpartition(":")
        try:
            weight = float(number) if colon and not Path(folder).exists() else None
        except ValueError:
            weight = None
        if weight is not None and not 0 < weight < float("inf"):
            raise UsageError(f"{folder}: the weight of a folder is a number above 0")
        pairs.append((folder, 1.0) if weight is None else (name, weight))
    return tuple(pairs)
