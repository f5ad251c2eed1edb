"""The model card beside weights that were trained."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

import sapnet_cli
from sapnet_cli.training.config import TrainingConfig
from sapnet_cli.training.processes import Processes


def model_card(
    config: TrainingConfig,
    processes: Processes,
    data: Sequence[str],
    moment: str,
    iteration: int,
    seconds: float,
    scores: Mapping[str, float],
) -> str:
    """What these weights are, in Markdown: data, settings, machine and scores.

    Args:
        config: of the run.
        processes: that trained.
        data: one line for each set.
        moment: when in the run the weights were taken.
        iteration: steps until then.
        seconds: of training until then.
        scores: of the last validation, by name.
    """
    on_gpu = processes.device.type == "cuda"
    threads = torch.get_num_threads()
    on_cpu = "one CPU core" if threads == 1 else f"{threads} CPU cores"  # as many as worked, not as there are
    device = torch.cuda.get_device_name(processes.device) if on_gpu else on_cpu
    device = f"{processes.count} x {device}" if processes.count > 1 else device
    lines = [
        "# SAPNet weights",
        "",
        f"Trained by `sapnet train` {sapnet_cli.__version__}, recipe `{config.recipe}`, taken at {moment}: "
        f"{iteration} iterations in {seconds / 60:.1f} minutes on {device} ({platform.machine()}, PyTorch "
        f"{torch.__version__}).",
        "",
        "## Data",
        "",
        *(f"- {line}" for line in data),
        "",
        "## Scores on what was held out",
        "",
    ]
    if scores:
        lines += [
            f"PSNR {scores['psnr']:.2f} dB (rainy input {scores['psnr_rainy']:.2f} dB)"
            + (f", SSIM {scores['ssim']:.4f}" if "ssim" in scores else "")
            + "; Y channel, protocol of PReNet, averaged weights."
        ]
    else:
        lines += ["Nothing was held out."]
    settings = json.dumps(asdict(config), indent=2)
    lines += [
        "",
        "## Settings",
        "",
        "```json",
        settings,
        "```",
        "",
        "Use: `sapnet derain photos/ -o clean/ --weights FILE`",
    ]
    return "\n".join(lines) + "\n"
