from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, so that tests do not starve each other's processes

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner, Result

from sapnet_cli.cli.app import app
from sapnet_cli.hub import DEFAULT_WEIGHTS, locate_weights
from sapnet_cli.imaging.jobs import OutputOptions, plan_jobs
from sapnet_cli.model import compiled, native
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.model.sapnet import SAPNet

EXAMPLES = Path(__file__).parents[1] / "examples" / "rainy"
SHARED = Path(__file__).parents[2] / "shared"


needs_native = pytest.mark.skipif(not compiled.is_available(), reason="not compiled, or no x86 CPU with AVX2")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the peers' weights and real data, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def default_model() -> SAPNet:
    """The network with the weights that are shipped as the default."""
    return load_checkpoint(locate_weights(DEFAULT_WEIGHTS))


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with networks of the right shapes and random weights, scaled so that activations live."""
    folder = tmp_path_factory.mktemp("backbones")
    from safetensors.torch import save_file
    from torchvision.models import resnet50, vgg16

    torch.manual_seed(0)
    state = {name: value for name, value in vgg16(weights=None).state_dict().items() if name.startswith("features")}
    save_file(state, folder / "vgg16.safetensors")
    save_file(resnet50(weights=None).state_dict(), folder / "resnet50.safetensors")
    return folder


@pytest.fixture(params=[name for name, are_here in compiled.SETS.items() if are_here()] or [None])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Each set of instructions that this CPU has: all is asked of what is compiled for any of them."""
    if compiled.is_available():
        program = compiled.load_program(request.param)
        monkeypatch.setattr(compiled, "find_program", lambda: program)
    return cast("str | None", request.param)


def random_model(**config: object) -> SAPNet:
    """A small network with random weights."""
    from sapnet_cli.model.config import SAPNetConfig

    torch.manual_seed(0)
    defaults: dict[str, object] = {"stages": 2, "channels": 8, "dilations": (1, 2), "reduction": 4}
    return SAPNet(SAPNetConfig(**{**defaults, **config})).eval().requires_grad_(False)  # type: ignore[arg-type]


def random_pixels(height: int, width: int, dtype: str = "uint8", seed: int = 0) -> NDArray[np.generic]:
    """A smooth random RGB picture."""
    random = np.random.default_rng(seed)
    coarse = random.random((height // 8 + 2, width // 8 + 2, 3))
    pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    if dtype == "float32":
        return pixels.astype(np.float32)
    return np.rint(pixels * np.iinfo(dtype).max).astype(dtype)


def plan(*inputs: str, output: str | None = "clean", listed: tuple[str, ...] = (), **options: object) -> dict[str, str]:
    """Where the results of which pictures would go."""
    jobs = plan_jobs(inputs, listed, OutputOptions(output, **options)).jobs  # type: ignore[arg-type]
    return {job.source_name: job.target_name for job in jobs}


def plane(*shape: int, seed: int = 0) -> Tensor:
    """(N, H, W, C)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first(plane: Tensor) -> Tensor:
    """Channels first, as PyTorch's convolutions take it."""
    return plane.permute(0, 3, 1, 2)


def last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


PLAIN = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}
"""The environment of a terminal in which messages are not coloured and not broken into lines."""

HANG_UP = getattr(signal, "SIGHUP", 1)
"""Windows has none, but collects the tests that it skips."""

ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (HANG_UP, 129)]
"""Signals, and the exit codes of those whom they end."""


def hear_signals() -> None:
    """For a process of a test's own: where tests run in a script's background or by nohup, it would ignore these."""
    for number in (signal.SIGINT, HANG_UP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a folder that a web server on loopback shows."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def invoke(*arguments: object, code: int = 0, **environment: str) -> Result:
    """Runs the command in this process, which takes seconds less than in one of its own; checks how it ended."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], env={**PLAIN, **environment})
    assert result.exit_code == code, result.stderr or result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def features(*shape: int, seed: int = 0) -> Tensor:
    """(N, C, H, W), channels last in memory."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


def means_of(values: Tensor, weight: Tensor, bias: Tensor, cores: Tensor, dilation: int) -> Tensor:
    """The means over cores, (N, 4), of a convolution of a plane, (N, O)."""
    exact = first(values).double(), weight.double(), bias.double()
    result = functional.conv2d(*exact, padding=dilation, dilation=dilation)
    within = zip(result, cores.tolist())
    return torch.stack([picture[:, a:b, c:d].mean(dim=(1, 2)) for picture, (a, b, c, d) in within]).float()


def stepped(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cell and hidden state of an LSTM after a step, by its gates; without a cell it is the first."""
    gate_in, candidate, gate_out, *forget = gates.double().chunk(3 if cell is None else 4, dim=3)
    after = gate_in.sigmoid() * candidate.tanh()
    if cell is not None:
        after += forget[0].sigmoid() * cell.double()
    return after, gate_out.sigmoid() * after.tanh()


def check_options(
    seen: Tensor, kernel: Tensor, scale: Tensor, bias: Tensor, plain: Tensor, skip: Tensor, rtol: float, atol: float
) -> None:
    """What `native.convolve` makes of a convolution, scaled and with a bias, that should be `plain`; of dilation 2."""
    for relu, added in ((False, None), (True, None), (False, skip), (True, skip)):
        expected = (plain.relu() if relu else plain) + (0 if added is None else added)
        expected = expected.relu() if relu else expected
        given = native.convolve(seen, kernel, scale, bias, 2, relu, added)
        assert torch.allclose(given.to(expected.dtype), expected, rtol=rtol, atol=atol)
        place = torch.empty_like(given)
        assert native.convolve(seen, kernel, scale, bias, 2, relu, added, place) is place
        assert torch.equal(place, given)
    scales, biases = torch.stack((scale, scale.flip(0))), torch.stack((bias, bias.flip(0)))
    both = native.convolve(torch.cat((seen, seen)), kernel, scales, biases, 2)
    assert torch.equal(both[:1], native.convolve(seen, kernel, scale, bias, 2))
    assert torch.equal(both[1:], native.convolve(seen, kernel, scale.flip(0), bias.flip(0), 2))
    in_place = skip.clone()
    native.convolve(seen, kernel, scale, bias, 2, True, in_place, in_place)
    assert torch.equal(in_place, given)


def check_on_one_thread(seen: Tensor, kernel: Tensor) -> None:
    """There `native.convolve` to 32 channels gives the same."""
    options = torch.ones(32), torch.zeros(32), 4
    both = [native.convolve(seen, kernel, *options)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        both.append(native.convolve(seen, kernel, *options))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*both)
