"""The loop learns, stops, goes on to the bit, and works in several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ENDINGS, hear_signals, invoke
from safetensors.torch import load_file
from test_pairs import write_pairs
from torch import nn

from sapnet_cli.data.sets import DataConfig, load_data
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.errors import CheckpointError, OutOfMemoryError, SapnetError, UsageError
from sapnet_cli.losses.joint import JointLoss, LossWeights
from sapnet_cli.model.checkpoint import load_checkpoint, save_checkpoint
from sapnet_cli.model.config import SAPNetConfig
from sapnet_cli.model.sapnet import SAPNet, global_average_pool
from sapnet_cli.training.config import RECIPES, Budget, Phase, TrainingConfig, from_json
from sapnet_cli.training.learner import Learner
from sapnet_cli.training.optimizers import Muon, build_optimizers, orthogonalise
from sapnet_cli.training.plan import Changes, plan_run
from sapnet_cli.training.processes import Processes
from sapnet_cli.training.run_folder import RunFolder
from sapnet_cli.training.trainer import DivergedError, Report, Runtime, Trainer, planned_iterations

SMALL = SAPNetConfig(stages=2, channels=8, dilations=(1, 2), reduction=4)
ALONE = Processes(0, 1, torch.device("cpu"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SAPNET_BACKBONES": "", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """For networks as small as these a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", 8)


def config(iterations: int, **changes: object) -> TrainingConfig:
    base = TrainingConfig(
        Budget(iterations, "iterations"),
        patch=24,
        batch=4,
        phases=(Phase(0.5, depth=0.5), Phase(0.5)),
        losses=LossWeights(l1=1, stages=0.3),
        optimizer="muon",
        learning_rate=4e-3,
        ema=0.9,
        precision="fp32",
        validations=2,
        model=SMALL,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def trainer(settings: TrainingConfig, pairs: Path, output: Path, **runtime: object) -> Trainer:
    data = load_data(DataConfig(data=((str(pairs), 1.0),), held_out=0.2), 2**30)
    folder = RunFolder(output)
    folder.begin({})
    options = Runtime(**{"workers": 1, "compile": False, **runtime})  # type: ignore[arg-type]
    return Trainer(settings, data, JointLoss(settings.losses), folder, ALONE, options)


def test_it_learns(pairs: Path, tmp_path: Path) -> None:
    reports: list[Report] = []
    run = trainer(config(240), pairs, tmp_path / "run")
    assert run.run(reports.append)
    scores = [report.metrics for report in reports if report.validation]
    assert len(scores) == 2
    assert scores[-1]["psnr"] > scores[-1]["psnr_rainy"] + 2
    assert 0 < scores[-1]["ssim"] <= 1
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records if "loss" in record] == [1, *range(20, 241, 20)]
    assert records[1]["images_per_second"] > 0
    for name in ("best.safetensors", "final.safetensors"):
        model = load_checkpoint(tmp_path / "run" / name)
        assert model.config == SMALL
        means = Engine(model, EngineConfig(device="cpu", precision="fp32")).rain_means(
            [(picture.rainy, picture.clean) for picture in run.data.validation]
        )
        assert np.allclose(torch.as_tensor(model.rain_means), means, atol=1e-5), "for derain --insist"
    card = (tmp_path / "run" / "final.md").read_text()
    assert "dB (rainy input" in card
    assert f" {torch.get_num_threads()} CPU cores" in card or " one CPU core " in card
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_the_earlier_units_give_images_too(pairs: Path, tmp_path: Path) -> None:
    run = trainer(config(200, phases=(Phase(1.0),)), pairs, tmp_path / "run")
    run.run(lambda report: None)
    model = load_checkpoint(tmp_path / "run" / "final.safetensors")
    for picture in run.data.validation:
        rainy, clean = (torch.tensor(each).permute(2, 0, 1)[None] / 255 for each in (picture.rainy, picture.clean))
        first, last = ((image - clean).abs().mean() for image in model.stage_images(rainy))
        assert float(last) < float((rainy - clean).abs().mean())
        assert float(first) < float((rainy - clean).abs().mean())


def test_checkpoints_are_kept_and_a_finished_run_is_left_alone(pairs: Path, tmp_path: Path) -> None:
    run = trainer(config(100), pairs, tmp_path / "run", save_every=0.0)
    run.run(lambda report: None)
    kept = sorted(path.name for path in (tmp_path / "run").glob("*.ckpt"))
    assert kept == [f"iteration-{number:08d}.ckpt" for number in (60, 80, 100)] + ["last.ckpt"]
    again = trainer(config(100), pairs, tmp_path / "run")
    again.resume(again.folder.load())
    assert again.run(lambda report: None)
    assert again.iteration == 100


def test_an_interrupted_run_goes_on_to_the_bit(pairs: Path, tmp_path: Path) -> None:
    whole = trainer(config(50), pairs, tmp_path / "whole")
    assert whole.run(lambda report: None)
    broken = trainer(config(50), pairs, tmp_path / "broken")
    assert not broken.run(lambda report: None, lambda progress: broken.iteration < 33)
    assert broken.iteration == 33
    resumed = trainer(config(50), pairs, tmp_path / "broken")
    resumed.resume(resumed.folder.load())
    assert resumed.iteration == 33
    assert resumed.run(lambda report: None)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


def assert_same_weights(first: Path, second: Path) -> None:
    for name in ("final.safetensors", "best.safetensors"):
        states = [load_file(folder / name) for folder in (first, second)]
        assert states[0].keys() == states[1].keys()
        for key, tensor in states[0].items():
            assert torch.equal(tensor, states[1][key]), key


def test_other_pictures_are_noticed(pairs: Path, tmp_path: Path) -> None:
    run = trainer(config(20), pairs, tmp_path / "run")
    run.run(lambda report: None)
    (pairs / "input" / "1.png").unlink()
    (pairs / "input" / "2.png").unlink()
    other = trainer(config(20), pairs, tmp_path / "run")
    with pytest.raises(UsageError, match="not those that this run began with"):
        other.resume(other.folder.load())


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 half a file"])
def test_a_damaged_checkpoint_is_named(content: bytes, pairs: Path, tmp_path: Path) -> None:
    run = trainer(config(60), pairs, tmp_path / "run", save_every=0.0)
    run.run(lambda report: None)
    run.folder.path.joinpath("last.ckpt").unlink()  # a link to the newest of the others
    run.folder.path.joinpath("last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged.*iteration-00000040\.ckpt over it"):
        run.folder.load()


@pytest.mark.parametrize("bad", ["nan", "explosion"])
def test_divergence_stops_with_the_last_good_checkpoint(
    bad: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(config(100), pairs, tmp_path / "run", save_every=0.0)
    learn = run.learner.learn

    def spoil(*arguments: Any) -> Any:
        if run.iteration == 45:
            bias = run.learner.model.project.bias
            assert bias is not None
            with torch.no_grad():
                bias.fill_(float("nan") if bad == "nan" else 1e6)
        return learn(*arguments)

    monkeypatch.setattr(run.learner, "learn", spoil)
    with pytest.raises(DivergedError, match=r"diverged by iteration 50.*last\.ckpt is from before"):
        run.run(lambda report: None)
    state = run.folder.load()
    assert state["iteration"] == 40
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())
    assert not (tmp_path / "run" / "final.safetensors").exists()


def test_a_full_disk_is_one_clear_line(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(config(20), pairs, tmp_path / "run")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sapnet_cli.training.run_folder.write_atomically", full)
    with pytest.raises(SapnetError, match="cannot write there: No space left on device"):
        run.run(lambda report: None)


def test_too_large_a_step_is_refused_before_anything_is_learnt(pairs: Path, tmp_path: Path) -> None:
    phases = (Phase(0.5), Phase(0.5, scale=2))
    with pytest.raises(OutOfMemoryError, match=r"1 crops of 80000x80000 .* lower --batch-size or --patch-size$"):
        trainer(config(10, batch=2, patch=40_000, phases=phases), pairs, tmp_path / "run")


def test_a_step_that_runs_out_of_memory_says_what_to_do(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(config(10), pairs, tmp_path / "run")

    def fail(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(run.learner, "_images", fail)
    with pytest.raises(OutOfMemoryError, match="does not fit into memory; lower --batch-size or --patch-size, or add"):
        run.run(lambda report: None)


def test_recomputed_units_give_the_same_gradient() -> None:
    torch.manual_seed(0)
    model, rainy = SAPNet(SMALL), torch.rand(2, 3, 16, 16)
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        images = model.stage_images(rainy, None, global_average_pool, recompute)
        sum(image.square().mean() for image in images).backward()  # type: ignore[union-attr]
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == len(list(model.parameters()))
    assert all(torch.allclose(first, second, atol=1e-7) for first, second in zip(*gradients))


def test_schedules() -> None:
    paper = TrainingConfig(**{**RECIPES["paper"], "budget": Budget(100, "epochs")})
    assert [paper.rate(progress) for progress in (0, 0.29, 0.3, 0.5, 0.8)] == pytest.approx([1, 1, 0.2, 0.04, 0.008])
    default = TrainingConfig(**{**RECIPES["default"], "budget": Budget(1, "minutes")})
    assert default.rate(0) < 0.02
    assert default.rate(0.01) == pytest.approx(1, abs=0.02)
    assert default.rate(1) == pytest.approx(0.01)
    shapes = [default.shape(progress) for progress in (0, 0.54, 0.56, 0.79, 0.81, 1.0)]
    assert [shape.stages for shape in shapes] == [3, 3, 3, 3, 6, 6]
    assert [(shape.patch, shape.batch) for shape in shapes] == [(64, 8)] * 2 + [(128, 2)] * 4
    assert planned_iterations(paper, pixels=8 * 10000 * 5, processes=1) == 500
    assert planned_iterations(paper, pixels=8 * 10000 * 5, processes=2) == 250
    assert planned_iterations(default, 1, 1) is None


def test_configurations_survive_json() -> None:
    from dataclasses import asdict

    for recipe in RECIPES.values():
        settings = TrainingConfig(**{**recipe, "budget": Budget(3, "epochs")})
        assert from_json(TrainingConfig, json.loads(json.dumps(asdict(settings)))) == settings
    data = DataConfig((("a", 1.0),), (("b", 2.0),), ("c",), "clean-left", ("d",), 0.1, 3)
    assert from_json(DataConfig, json.loads(json.dumps(asdict(data)))) == data


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": Budget(0, "iterations")},
        {"patch": 8},
        {"losses": {"ssim": -1.0}},
        {"losses": {"ssim": 0.0, "l1": 0.0}},
        {"losses": {"luma": 1.5}},
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        plan_run(Changes(data={"data": (("x", 1.0),)}, training=changes))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_every_parameter_is_optimised_once(optimizer: str) -> None:
    model = SAPNet(SMALL)
    optimizers = build_optimizers(model, config(1, optimizer=optimizer))
    stepped = [id(each) for one in optimizers for group in one.param_groups for each in group["params"]]
    assert sorted(stepped) == sorted(id(parameter) for parameter in model.parameters())
    assert any(isinstance(one, Muon) for one in optimizers) == (optimizer == "muon")


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 288), (2, 128, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.5


# the command, in processes of its own


def command(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "sapnet_cli", "train", *(str(each) for each in arguments)]


def small_run(pairs: Path, output: Path, start: Path, iterations: int = 60) -> list[object]:
    """Options of a run of a small network in fp32."""
    if not start.exists():
        torch.manual_seed(0)
        save_checkpoint(SAPNet(SMALL), start)
    options = ["--patch-size", 24, "--batch-size", 2, "--iterations", iterations, "--precision", "fp32", "--no-compile"]
    return ["--data", pairs, "-o", output, "--weights", start, "--constant", "--validations", 2, *options]


def run(arguments: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode == code, result.stderr
    return result


def test_a_slow_precision_is_said_once(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapnet_cli.engine.hardware.fast_float", lambda: torch.float32)
    options = small_run(pairs, tmp_path / "run", tmp_path / "start.safetensors", 2)
    options.remove("--no-compile")
    options[options.index("fp32")] = "bf16"
    options[options.index("--validations") + 1] = 0  # whose engine says it, too
    assert invoke("train", *options).stderr.count("slow in bf16") == 1


def test_by_default_the_losses_networks_run_in_what_pytorch_is_fastest_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network itself learns in C, in fp32."""
    monkeypatch.setattr("sapnet_cli.training.learner.fast_float", lambda: "bf16")
    crops = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    for asked, expected in (("auto", torch.bfloat16), ("fp32", torch.float32)):
        looks = Looks()
        settings = TrainingConfig(Budget(1, "iterations"), losses=LossWeights(pcl=1), precision=asked)
        learner = Learner(settings, JointLoss(settings.losses, looks), ALONE, torch.float32, compiled=False)
        learner.learn(crops, 255 - crops, stages=1, progress=0.0)
        assert looks.seen == [expected] * 2, asked


class Looks(nn.Module):
    """Stands for VGG-16."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3).requires_grad_(False)
        self.seen: list[torch.dtype] = []

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = self.convolution(images)
        self.seen.append(features.dtype)
        return [features] * 4


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(pairs: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    invoke("train", *small_run(pairs, tmp_path / "whole", start, 200))
    killed = command(*small_run(pairs, tmp_path / "killed", start, 200), "--save-every", 0)
    process = subprocess.Popen(killed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for(tmp_path / "killed" / "last.ckpt", process)
    beside = invoke("train", "-o", tmp_path / "killed", "--resume", code=2)
    assert "another sapnet train is at work there" in beside.stderr
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "final.safetensors").exists()
    refused = invoke("train", *killed[4:], code=2)
    assert "add --resume" in refused.stderr
    pairs.rename(tmp_path / "moved")
    resumed = run(command("-o", tmp_path / "killed", "--data", tmp_path / "moved", "--resume", "--no-compile"))
    assert "going on" in resumed.stderr
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    metrics = []
    for name in ("whole", "killed"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        metrics.append(
            [(record["iteration"], record.get("loss"), record.get("psnr")) for record in map(json.loads, lines)]
        )
    assert metrics[0] == metrics[1]
    other = invoke("train", "-o", tmp_path / "killed", "--resume", "--learning-rate", 0.5, code=2)
    assert "learning_rate" in other.stderr
    (tmp_path / "killed" / "last.ckpt").unlink()  # as if it had been killed before the first checkpoint
    begun = invoke("train", "-o", tmp_path / "killed", "--data", tmp_path / "moved", "--resume", "--dry-run")
    assert "8 pairs" in begun.stderr


def test_a_run_goes_on_for_longer(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    invoke("train", *small_run(pairs, folder, tmp_path / "start.safetensors", 4))
    final = (folder / "final.safetensors").read_bytes()
    longer = invoke("train", "-o", folder, "--resume", "--iterations", 8, "--no-compile").stderr
    assert "8 iterations" in longer
    assert "from step 4" in longer
    assert "step 8: validation" in longer
    assert (folder / "final.safetensors").read_bytes() != final
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records if "psnr_rainy" in record] == [2, 4, 8]
    ended = invoke("train", "-o", folder, "--resume").stderr
    assert "8 iterations" in ended
    assert "from step 8" in ended


def test_a_run_without_validations_names_no_best(pairs: Path, tmp_path: Path) -> None:
    options = [*small_run(pairs, tmp_path / "run", tmp_path / "start.safetensors", 2), "--psnr", 0.01]
    assert "validation: " in invoke("train", *options).stderr.splitlines()[-1]
    options[options.index("-o") + 1] = tmp_path / "unvalidated"
    assert invoke("train", *options, "--validations", 0).stderr.splitlines()[-1].endswith("final.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_an_interrupt_saves_and_says_so(number: int, code: int, pairs: Path, tmp_path: Path) -> None:
    arguments = command(*small_run(pairs, tmp_path / "run", tmp_path / "start.safetensors", 100000))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=hear_signals)
    wait_for(tmp_path / "run" / "tensorboard", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "go on with --resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("done", "says"), [(0, "no step was done yet"), (2, "holds the last checkpoint, go on with --resume")]
)
def test_an_interrupt_that_ends_the_compiler_is_no_failure(
    done: int, says: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a script's background it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    learn, steps = Learner.learn, iter(range(done))

    def learn_until_interrupted(*arguments: Any) -> Any:
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGINT)  # which the terminal sends to the compiler as well
            raise RuntimeError("C++ compile error")
        return learn(*arguments)

    monkeypatch.setattr(Learner, "learn", learn_until_interrupted)
    options = small_run(pairs, tmp_path / "run", tmp_path / "start.safetensors", 4)  # with a checkpoint after two
    assert says in invoke("train", *options, code=130).stderr.splitlines()[-1]


def test_what_is_no_budget_and_no_run(pairs: Path, tmp_path: Path) -> None:
    nothing = invoke("train", "--data", pairs, "-o", tmp_path / "run", "--iterations", 0, code=2)
    assert "a budget of 0 iterations leaves nothing to train" in nothing.stderr
    for option, value in (("--minutes", "nan"), ("--ssim", "nan"), ("--learning-rate", "inf")):
        result = invoke("train", "--data", pairs, "-o", tmp_path / "run", option, value, code=2)
        assert f"of {value} makes no sense" in result.stderr
    nowhere = invoke("train", "-o", tmp_path / "run", "--resume", code=2)
    assert "holds no run to go on with" in nowhere.stderr


def test_two_processes_learn_what_one_does_with_twice_the_batch(pairs: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    common = ["--ema", 0, "--clip", 0, "--optimizer", "adam"]
    one = [*small_run(pairs, tmp_path / "one", start, 40), *common]
    one[one.index("--batch-size") + 1] = 4
    invoke("train", *one)
    two = [*small_run(pairs, tmp_path / "two", start, 40), *common]

    def both(*arguments: object) -> str:
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
        return run(command(*arguments, "--device", "cpu", launcher=launcher)).stderr

    said = both(*two)
    assert "2 x cpu" in said
    assert said.count(": validation") == 2, "one process speaks for all"
    curves = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        curves.append([record["loss"] for record in map(json.loads, lines) if "loss" in record])
    assert len(curves[0]) == 3
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert curves[0][-1] < curves[0][0]
    again = both("-o", tmp_path / "two", "--resume")
    assert "from step 40" in again
    assert "done" in again


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_whole_way_from_pairs_to_a_derained_photo(pairs: Path, tmp_path: Path) -> None:
    (pairs / "input" / "3.png").write_text("no picture")
    result = invoke("train", *small_run(pairs, tmp_path / "run", tmp_path / "start.safetensors"), "--json")
    assert "3.png: not a picture" in result.stderr
    assert "7 pairs, 7 of 64x48; 6 to train on, 1 held out" in result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert records[-1]["psnr"] > 0
    for name in ("best.safetensors", "final.safetensors"):
        invoke("derain", pairs / "input" / "1.png", "-o", tmp_path / "out", "--weights", tmp_path / "run" / name)
    assert (tmp_path / "out" / "1.png").exists()


def test_a_dry_run_writes_nothing(pairs: Path, tmp_path: Path) -> None:
    result = invoke("train", "--data", pairs, "-o", tmp_path / "run", "--dry-run")
    assert "8 pairs" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data"),
        (["--data", "nowhere", "-o", "run"], "nowhere"),
        (["--data", "nowhere", "--epochs", "3", "--minutes", "5"], "give one of them"),
        (["--data", "PAIRS", "-o", "run", "--pcl", "1", "--backbones", "nowhere"], "nowhere: the folder of backbones"),
        (["--data", "PAIRS", "-o", "FILE", "--iterations", "2"], "FILE"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], message: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FILE").write_text("")
    monkeypatch.chdir(tmp_path)
    names = {"PAIRS": str(pairs)}
    result = invoke("train", *(names.get(each, each) for each in arguments), code=2, SAPNET_BACKBONES="")
    assert message in result.stderr.splitlines()[-1]


def test_a_step_is_timed_against_the_authors_own(tmp_path: Path) -> None:
    options = [
        "--benchmark",
        "--json",
        "--patch-size",
        16,
        "--batch-size",
        1,
        "--stages",
        1,
        "--precision",
        "fp32",
        "--no-compile",
    ]
    record = json.loads(invoke("train", *options).stdout)
    assert record["ratio"] == pytest.approx(record["ours"] / record["authors"])
    assert record["losses"] == "ssim, l1"
