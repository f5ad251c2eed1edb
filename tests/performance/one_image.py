"""Seconds for one picture: the authors' network in eager fp32, sapnet, and other runtimes, in turns.

Each lives in a process of its own, so that none runs with another's settings or memory. Runtimes are not asked for bf16
where the CPU is slow in it.

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
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import choose_device, is_slow_in, prepare_process, synchronize
from sapnet_cli.hub import locate_weights
from sapnet_cli.model import compiled
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.benchmark import ReleasedNetwork

EXAMPLE = Path(__file__).parents[2] / "examples" / "rainy" / "china.jpg"
SIZE = (481, 321)
AUTHORS = "authors' network, eager fp32"

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


def authors(model: SAPNet, rainy: np.ndarray, device: torch.device, stages: int) -> Run:
    """As their test script does it."""
    network, on_device = released(model).to(device), torch.from_numpy(rainy).to(device)
    network.stages = stages

    @torch.inference_mode()
    def run() -> np.ndarray:
        return network(on_device).clamp(0, 1).cpu().numpy()

    return run


def ours(model: SAPNet, rainy: np.ndarray, device: torch.device, stages: int, precision: str) -> Run:
    """As `sapnet derain` does it."""
    prepare_process()
    engine = Engine(model, EngineConfig(str(device), precision, stages=stages))
    image = np.ascontiguousarray(rainy[0].transpose(1, 2, 0))
    return lambda: engine.derain(image).transpose(2, 0, 1)[None]


def export(model: SAPNet, rainy: np.ndarray) -> str:
    """The published graph as ONNX."""
    path = str(Path(tempfile.mkdtemp()) / "sapnet.onnx")
    names = {"input_names": ["rainy"], "output_names": ["clean"]}
    torch.onnx.export(Published(model), (torch.from_numpy(rainy),), path, dynamo=False, **names)
    return path


def onnx_runtime(model: SAPNet, rainy: np.ndarray) -> Run:
    """ONNX Runtime on as many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(export(model, rainy), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"rainy": rainy})[0]


def openvino(model: SAPNet, rainy: np.ndarray, hint: str) -> Run:
    """OpenVINO on as many threads."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(export(model, rainy)), "CPU", settings)
    return lambda: compiled(rainy)[0]


def work(name: str, arguments: argparse.Namespace, connection: Connection) -> None:
    """One process: runs when it is told to, and says how long it took and what came out."""
    warnings.filterwarnings("ignore")
    model = load_checkpoint(locate_weights(arguments.weights)).eval().requires_grad_(False)
    device = torch.device(str(choose_device(arguments.device)))
    rainy = read_picture(arguments.picture)
    runs: dict[str, Callable[[], Run]] = {
        AUTHORS: lambda: authors(model, rainy, device, arguments.stages),
        "sapnet --precision fp32": lambda: ours(model, rainy, device, arguments.stages, "fp32"),
        "sapnet --precision bf16": lambda: ours(model, rainy, device, arguments.stages, "bf16"),
        "sapnet --precision auto": lambda: ours(model, rainy, device, arguments.stages, "auto"),
        "ONNX Runtime fp32": lambda: onnx_runtime(model, rainy),
        "OpenVINO fp32": lambda: openvino(model, rainy, "f32"),
        "OpenVINO bf16": lambda: openvino(model, rainy, "bf16"),
    }
    run = runs[name]()
    while connection.recv():
        synchronize(device)
        start = time.perf_counter()
        result = run()
        synchronize(device)
        connection.send((time.perf_counter() - start, result))


def read_picture(path: Path) -> np.ndarray:
    """(1, 3, H, W) float32."""
    image = np.asarray(Image.open(path).convert("RGB"))[: SIZE[1], : SIZE[0]].astype(np.float32) / 255
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=EXAMPLE, help="cut to 481x321")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--weights", default="sapnet-general")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    slow_in_bf16 = is_slow_in("bf16", choose_device(arguments.device))
    names = [AUTHORS, "sapnet --precision fp32", "sapnet --precision auto"]
    if compiled.is_available() or not slow_in_bf16:
        names.append("sapnet --precision bf16")
    if arguments.device == "cpu" and arguments.stages == 6 and importlib.util.find_spec("onnx"):
        names += ["ONNX Runtime fp32"] if importlib.util.find_spec("onnxruntime") else []
        if importlib.util.find_spec("openvino"):
            names += ["OpenVINO fp32"] if slow_in_bf16 else ["OpenVINO fp32", "OpenVINO bf16"]
    context, connections = get_context("spawn"), {}
    for name in names:
        connections[name], end = context.Pipe()
        context.Process(target=work, args=(name, arguments, end), daemon=True).start()

    def run(name: str) -> tuple[float, np.ndarray]:
        connections[name].send(True)
        return connections[name].recv()

    results = {name: run(name)[1] for name in names}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            seconds[name].append(run(name)[0])
    for connection in connections.values():
        connection.send(False)

    shape = results[AUTHORS].shape
    print(f"{shape[3]}x{shape[2]}, {arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':30} {'median s':>9} {'fastest s':>9} {'ratio':>6}  off by at most, PSNR against the first")
    first = statistics.median(seconds[AUTHORS])
    for name in names:
        error = np.abs(results[name] - results[AUTHORS])
        off = f"{error.max():.0e}, {-10 * np.log10(max(float(np.square(error).mean()), 1e-20)):.0f} dB"
        median = statistics.median(seconds[name])
        print(f"{name:30} {median:9.3f} {min(seconds[name]):9.3f} {first / median:6.2f}  {off}")


if __name__ == "__main__":
    main()
