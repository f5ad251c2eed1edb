"""Seconds for one picture: the authors' network in eager fp32, sapnet, and other runtimes, in turns in one run.

    python tests/performance/one_image.py [PICTURE] [--rounds 7] [--stages 6] [--device cpu]

ONNX Runtime and OpenVINO take part where they are installed (pip install onnx onnxruntime openvino).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sapnet_cli.engine.engine import Engine, EngineConfig
from sapnet_cli.engine.hardware import choose_device, keep_freed_memory, synchronize
from sapnet_cli.hub import locate_weights
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.benchmark import ReleasedNetwork

EXAMPLE = Path(__file__).parents[2] / "examples" / "rainy" / "china.jpg"
SIZE = (481, 321)

Run = Callable[[], np.ndarray]


def released(model: SAPNet) -> ReleasedNetwork:
    """The authors' network with the same weights."""
    network = ReleasedNetwork(model.config.stages)
    network.embed, network.project = model.embed, model.project
    weights, biases = (torch.split(each, model.config.channels) for each in model.gates.parameters())
    for gate, index in zip(network.gates, (0, 3, 2, 1)):  # input, forget, output, candidate
        gate.weight, gate.bias = nn.Parameter(weights[index]), nn.Parameter(biases[index])
    for index, block in enumerate(model.blocks):
        network.convolutions[2 * index], network.convolutions[2 * index + 1] = block.conv1, block.conv2
        network.attentions[2 * index], network.attentions[2 * index + 1] = block.attention1, block.attention2
    return network.eval()


class Published(nn.Module):
    """What is exported for other runtimes: the network as a graph without choices."""

    def __init__(self, model: SAPNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, rainy: Tensor) -> Tensor:
        return self.model.stage_images(rainy)[-1].clamp(0, 1)


def other_runtimes(model: SAPNet, rainy: np.ndarray) -> dict[str, Run]:
    """ONNX Runtime and OpenVINO, as far as they are here."""
    runs: dict[str, Run] = {}
    if importlib.util.find_spec("onnx") is None:
        return runs
    path = str(Path(tempfile.mkdtemp()) / "sapnet.onnx")
    torch.onnx.export(
        Published(model), (torch.from_numpy(rainy),), path, dynamo=False, input_names=["rainy"], output_names=["clean"]
    )
    threads = torch.get_num_threads()
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        runs["ONNX Runtime fp32"] = lambda: session.run(None, {"rainy": rainy})[0]
    if importlib.util.find_spec("openvino"):
        import openvino

        core = openvino.Core()
        for name, hint in (("fp32", "f32"), ("bf16", "bf16")):
            settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
            compiled = core.compile_model(core.read_model(path), "CPU", settings)
            runs[f"OpenVINO {name}"] = lambda compiled=compiled: compiled(rainy)[0]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=EXAMPLE, help="cut to 481x321")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--weights", default="sapnet-base")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()

    model = load_checkpoint(locate_weights(arguments.weights)).eval().requires_grad_(False)
    device = choose_device(arguments.device)
    image = np.asarray(Image.open(arguments.picture).convert("RGB"))[: SIZE[1], : SIZE[0]].astype(np.float32) / 255
    rainy = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    network, on_device = released(model).to(device), torch.from_numpy(rainy).to(device)
    network.stages = arguments.stages

    @torch.inference_mode()
    def authors() -> np.ndarray:
        return network(on_device).clamp(0, 1).cpu().numpy()

    runs: dict[str, Run] = {"authors' network, eager fp32": authors}
    for precision in ("fp32", "auto"):
        engine = Engine(model, EngineConfig(arguments.device, precision, stages=arguments.stages))
        name = str(engine.precision).removeprefix("torch.")
        runs[f"sapnet --precision {precision} ({name})"] = lambda engine=engine: engine.derain(image).transpose(2, 0, 1)
    if device.type == "cpu" and arguments.stages == model.config.stages:
        runs |= other_runtimes(model, rainy)

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    expected = authors()
    print(f"{image.shape[1]}x{image.shape[0]}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for run in runs.values():
        run()
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    first = statistics.median(seconds["authors' network, eager fp32"])
    print(f"{'':34} {'median s':>9} {'fastest s':>9} {'ratio':>6}  off by at most, PSNR against the first")
    for name, run in runs.items():
        error = np.abs(run().reshape(expected.shape) - expected)
        noise = -10 * np.log10(max(float(np.square(error).mean()), 1e-20))
        median = statistics.median(seconds[name])
        print(
            f"{name:34} {median:9.3f} {min(seconds[name]):9.3f} {first / median:6.2f}  {error.max():.0e}, {noise:.0f} dB"
        )


if __name__ == "__main__":
    main()
