"""Scores are those of an independent implementation, and sets are what they are said to be."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import invoke, random_model, serving
from hub_server import serve
from PIL import Image
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as reference_ssim
from test_pairs import write_pairs
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50
from typer.testing import Result

from sapnet_cli.benchmark.score import bootstrap_interval, to_bytes
from sapnet_cli.data.benchmarks import BENCHMARKS, find_benchmark
from sapnet_cli.data.pairs import Pair
from sapnet_cli.errors import CheckpointError
from sapnet_cli.hub import backbones as backbones_module
from sapnet_cli.hub.backbones import TORCHVISION_FILES, locate_torchvision
from sapnet_cli.metrics.fidelity import compare_with_input, psnr, structural_similarity
from sapnet_cli.metrics.judges import Detector, Segmenter, matched_boxes
from sapnet_cli.model.checkpoint import save_checkpoint

GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11}


def benchmark(*arguments: object, code: int = 0, **environment: str) -> Result:
    return invoke("benchmark", *arguments, code=code, **environment)


def benchmark_apart(*arguments: object, environment: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the Hub's client reads its settings when it is imported."""
    result = subprocess.run(
        [sys.executable, "-m", "sapnet_cli", "benchmark", *(str(each) for each in arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.mark.parametrize("protocol", ["prenet", "restormer"])
@pytest.mark.parametrize("in_rgb", [False, True])
def test_protocols(protocol: str, in_rgb: bool) -> None:
    random = np.random.default_rng(0)
    first, noise = random.integers(0, 256, (64, 80, 3)), random.integers(-30, 30, (64, 80, 3))
    second = np.clip(first + noise, 0, 255)
    images = [each.astype(np.uint8) for each in (first, second)]
    planes = [each.astype(float) for each in images]
    if not in_rgb:
        planes = [16 + each @ np.array([65.481, 128.553, 24.966]) / 255 for each in planes]
        planes = [np.rint(each) if protocol == "restormer" else each for each in planes]
    axis = 2 if in_rgb else None
    expected = reference_ssim(*planes, data_range=255, channel_axis=axis, **GAUSSIAN)
    assert psnr(*images, protocol, in_rgb) == pytest.approx(peak_signal_noise_ratio(*planes, data_range=255), abs=1e-4)
    assert structural_similarity(*images, protocol, in_rgb) == pytest.approx(expected, abs=1e-4)


def test_prenet_truncates_and_restormer_rounds() -> None:
    value = np.full((1, 1, 3), 100.7 / 255, np.float32)
    assert to_bytes(value, "prenet")[0, 0, 0] == 100
    assert to_bytes(value, "restormer")[0, 0, 0] == 101
    assert to_bytes(np.ones((1, 1, 3), np.float32), "prenet")[0, 0, 0] == 255


def test_bootstrap_intervals_hold_the_mean_and_shrink() -> None:
    random = np.random.default_rng(1)
    few, many = random.normal(1, 1, 20), random.normal(1, 1, 2000)
    for differences in (few, many):
        low, high = bootstrap_interval(differences)
        assert low < differences.mean() < high
    assert np.ptp(bootstrap_interval(many)) < 0.2 * np.ptp(bootstrap_interval(few))
    assert np.ptp(bootstrap_interval(many)) == pytest.approx(4 / np.sqrt(2000), rel=0.1)


def test_pairs_are_scored_as_their_saved_outputs_are(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3)
    result = benchmark(
        *(
            "--dataset",
            pairs,
            "-w",
            "sapnet-general",
            "--stages",
            "all",
            "--images",
            "[12].png",
            "--save",
            tmp_path / "out",
        ),
        *("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--markdown", tmp_path / "r.md"),
    )
    assert "2 pictures" in result.stdout
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["count"], record["protocol"]) == (2, "prenet")
    assert [each["weights"] for each in record["results"]] == [
        "rainy input",
        *(f"sapnet-general --stages {count}" for count in range(1, 7)),
    ]
    assert record["results"][1]["gain"] is None
    low, high = record["results"][2]["interval"]
    assert low <= record["results"][2]["gain"] <= high
    assert record["results"][6]["seconds_per_image"] > 0
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 7
    for row in rows:
        if row["weights"] == "rainy input":
            path = pairs / "input" / row["image"]
        else:
            path = tmp_path / "out" / row["weights"] / row["image"]
        saved, clean = (np.asarray(Image.open(each)) for each in (path, pairs / "target" / row["image"]))
        assert psnr(saved, clean) == pytest.approx(float(row["psnr"]), abs=1e-3)
    table = (tmp_path / "r.md").read_text().splitlines()
    assert table[0].startswith("| weights | PSNR |")
    assert len(table) == 2 + 7


@pytest.mark.parametrize(
    ("folder", "rainy", "clean", "name"),
    [
        ("Rain12", "001_in.png", "001_GT.png", "rain12"),
        ("Rain200L/test", "rain/norain-1x2.png", "norain/norain-1.png", "rain200l"),
        ("rain1400/testing", "rainy_image/901_1.jpg", "ground_truth/901.jpg", "rain1400"),
        ("spa-data", "rain/000.png", "gt/000gt.png", "spa-data"),
        ("GT-RAIN/GT-RAIN_test", "Oinari_0-3/Oinari_0-3-R-000.png", "Oinari_0-3/Oinari_0-3-C-000.png", "gt-rain"),
    ],
)
def test_public_sets_are_found_as_their_authors_lay_them_out(
    folder: str, rainy: str, clean: str, name: str, tmp_path: Path
) -> None:
    for path in (tmp_path / folder / rainy, tmp_path / folder / clean):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path)
    listing = find_benchmark(BENCHMARKS[name], [tmp_path])
    assert listing is not None
    assert listing.pairs == (Pair(tmp_path / folder / rainy, tmp_path / folder / clean),)


def test_a_public_set_is_found_by_name_and_checked(tmp_path: Path) -> None:
    write_pairs(tmp_path / "RAIN100L", 3)
    result = benchmark("--dataset", "rain100l", "--data", tmp_path, "--stages", 1)
    assert "this is not Rain100L: 3 pictures instead of 100" in result.stderr
    assert "PReNet" in result.stdout
    listed = benchmark("--list", "--data", tmp_path)
    assert "RAIN100L, 3 pairs" in listed.stdout
    assert listed.stdout.count("not here") == 10
    missing = benchmark("--dataset", "rain12", "--data", tmp_path, code=2)
    assert "Rain12 is not here (looked in" in missing.stderr
    nowhere = benchmark("--dataset", "rain12", "--data", tmp_path / "no", code=2)
    assert f"{tmp_path / 'no'}: no such folder" in nowhere.stderr


def test_further_measures_look_through_networks(backbones: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 2)
    shutil.copy(pairs / "target" / "1.png", pairs / "input" / "1.png")  # a dry pair
    options = ("--lpips", "--downstream", "classify", "--backbones", backbones, "--stages", 1)
    result = benchmark("--dataset", pairs, *options, "--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    assert "LPIPS" in result.stdout
    record = json.loads((tmp_path / "r.json").read_text())
    dry, rainy = (each for each in record["images"] if each["weights"] == "rainy input")
    assert dry["lpips"] == pytest.approx(0, abs=1e-6)
    assert rainy["lpips"] > 1e-3
    assert dry["top_1"] == 1
    assert record["results"][0]["lpips"] == pytest.approx((dry["lpips"] + rainy["lpips"]) / 2)
    assert (tmp_path / "r.csv").read_text().splitlines()[0].endswith("height,lpips,top_1")


def test_a_segmentation_counts_what_both_see(tmp_path: Path) -> None:
    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    torch.save(network.state_dict(), tmp_path / TORCHVISION_FILES["deeplabv3_resnet50"])
    judge = Segmenter(locate_torchvision("deeplabv3_resnet50", tmp_path), torch.device("cpu"))
    left, right = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    left[:, :4], right[:, :2] = 255, 255

    def by_brightness(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        assert min(pixels.shape[2:]) == 520
        return {"out": torch.cat((-pixels[:, :1], pixels[:, :1]), dim=1)}

    judge._network = by_brightness  # type: ignore[assignment]
    assert judge(left, left) == 1
    assert judge(left, right) == pytest.approx((0.5 + 4 / 6) / 2, abs=0.01)  # bright 2 of 4 columns, dark 4 of 6


def test_a_detection_counts_boxes_that_find_their_own(tmp_path: Path) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    labels = torch.tensor([1, 1, 2, 3])
    truth, true_labels = boxes[[0, 2, 3]], torch.tensor([1, 9, 3])
    assert matched_boxes(boxes, labels, truth, true_labels) == 2  # one is taken already, one is of another class
    assert matched_boxes(boxes, labels, truth[:0], true_labels[:0]) == 0

    save_file(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), tmp_path / "x.safetensors")
    judge = Detector(tmp_path / "x.safetensors", torch.device("cpu"))
    picture = np.zeros((8, 8, 3), np.uint8)
    for shown, expected in (((boxes, labels), 4 / 7), ((boxes[:0], labels[:0]), 0.0)):
        found = iter([shown, (truth, true_labels)])

        def look(
            _: object, found: Iterator[tuple[torch.Tensor, torch.Tensor]] = found
        ) -> list[dict[str, torch.Tensor]]:
            places, classes = next(found)
            return [{"boxes": places, "labels": classes, "scores": torch.linspace(1, 0.5, len(places))}]

        judge._network = look  # type: ignore[assignment]
        assert judge(picture, picture) == pytest.approx(expected)


def test_networks_of_torchvision_are_fetched_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    file = TORCHVISION_FILES["fasterrcnn_resnet50_fpn"]
    (tmp_path / file).write_bytes(b"something else")
    with serving(tmp_path) as web:
        monkeypatch.setattr(backbones_module, "TORCHVISION_ADDRESS", f"{web}/")
        with pytest.raises(CheckpointError, match=r"invalid hash.*--backbones"):
            locate_torchvision("fasterrcnn_resnet50_fpn")
        (tmp_path / file).rename(tmp_path / "gone")
        with pytest.raises(CheckpointError, match="File not found"):
            locate_torchvision("fasterrcnn_resnet50_fpn")
        right = f"right-{hashlib.sha256(b'something else').hexdigest()[:8]}.pth"
        monkeypatch.setitem(TORCHVISION_FILES, "fasterrcnn_resnet50_fpn", right)
        (tmp_path / "gone").rename(tmp_path / right)
        path = locate_torchvision("fasterrcnn_resnet50_fpn")
    assert path.read_bytes() == b"something else"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert locate_torchvision("fasterrcnn_resnet50_fpn") == path
    with pytest.raises(CheckpointError, match="damaged, or of another network"):
        Detector(path, torch.device("cpu"))


def test_pictures_without_ground_truth_give_speed_and_what_changed(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3)
    options = ("--stages", 1, "--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--report", tmp_path / "page")
    result = benchmark("--dataset", pairs / "input", *options)
    assert "no ground truths here" in result.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    before, after = record["results"]
    assert record["count"] == 3
    assert before["psnr"] is after["psnr"] is after["gain"] is None
    assert before["change"] == before["brightness"] == 0
    assert after["change"] > 0
    assert after["seconds_per_image"] > 0
    ramp = np.arange(0, 200, 10, np.uint8)[None, :, None].repeat(8, axis=0).repeat(3, axis=2)
    said = compare_with_input(ramp + np.uint8(3), ramp)
    assert said == pytest.approx({"change": 3, "brightness": 3, "gradient": 10 * 219 / 255})
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("<figure>") == 3
    assert "Most changed" in page
    assert "truth" not in re.sub("<script>.*</script>", "", page.split("</table>")[1], flags=re.DOTALL)
    refused = benchmark("--dataset", pairs / "input", "--lpips", code=2)
    assert "has no ground truths" in refused.stderr


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_report_is_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "<pairs>", 5)
    benchmark("--dataset", pairs, "--stages", 1, "--report", tmp_path / "report")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<figure>") == 5, "no picture is among the best and the worst"
    assert page.count("<circle") == 10
    assert "&lt;pairs&gt;" in page
    assert "<pairs>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "@" not in re.sub('src="[^"]*"', "", page.split("</style>")[1])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_report_works_in_a_browser(tmp_path: Path) -> None:
    benchmark("--dataset", write_pairs(tmp_path / "pairs", 2), "--stages", 1, "--report", tmp_path)
    page = tmp_path / "index.html"
    used = """<script>
      const range = document.querySelector("input"), view = document.querySelector(".view");
      document.querySelectorAll("button")[1].click();
      range.value = 25; range.dispatchEvent(new Event("input"));
      const box = view.getBoundingClientRect();
      view.dispatchEvent(new MouseEvent("click", { clientX: box.left + box.width / 2, clientY: box.top }));
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", used))
    switches = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    assert BROWSER is not None
    result = subprocess.run(
        [BROWSER, *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    figure = result.stdout.split("<figure>")[1]
    assert 'style="left: 25%' in figure
    assert 'class="view zoomed"' in figure
    clips = dict(re.findall(r'<img class="(left|middle|right)[^>]*clip-path: ([^;]+);', figure))
    assert clips["left"] == "none"
    cut = re.fullmatch(r"inset\(0px ([\d.]+)% 0px 0px\)", clips["middle"])
    rest = re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", clips["right"])
    assert cut is not None
    assert rest is not None
    # a quarter of the view is, four times enlarged about its middle, 43.75 % of the picture; the mouse has whole pixels
    assert float(rest[1]) == pytest.approx(43.75, abs=0.2)
    assert float(cut[1]) + float(rest[1]) == pytest.approx(100, abs=0.01)


def test_a_set_is_fetched_from_the_hub(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "Rain12", 2)
    files = {f"datasets/me/sets/Rain12/{path.relative_to(pairs)}": path.read_bytes() for path in pairs.rglob("*.png")}
    files["datasets/me/sets/Rain200L/input/1.png"] = b"another set, not asked for"
    home = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "SAPNET_CACHE": str(tmp_path / "cache"), "SAPNET_DATA": ""}
    options = ("--dataset", "rain12", "--stages", 1, "--download")
    with serve(files) as (address, requests):
        online = {**home, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        result = benchmark_apart(*options, "--repo", "me/sets", environment=online)
        assert "2 pictures" in result.stdout
        assert "this is not Rain12: 2 pictures instead of 12" in result.stderr
        assert not any("Rain200L/input" in request for request in requests)
        missing = benchmark_apart("--dataset", "rain12", "--download", "--repo", "me/none", environment=online, code=2)
        assert "me/none/Rain12" in missing.stderr
    again = benchmark_apart(*options, "--repo", "me/sets", environment={**home, "HF_HUB_OFFLINE": "1"})
    assert "2 pictures" in again.stdout


def test_a_benchmark_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3)
    options = ("--dataset", pairs, "--stages", 1, "--save", tmp_path / "out", "--json")
    benchmark(*options, tmp_path / "first.json", "--limit", 2)
    log = tmp_path / "out" / "scores.jsonl"
    assert len(log.read_text().splitlines()) == 2
    log.write_text(log.read_text() + '{"key": "half a li')
    benchmark(*options, tmp_path / "second.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())["images"] for name in ("first", "second"))
    assert second[: len(first)] == first, "scored again, seconds and all"
    assert len(second) == 6
    log.unlink()
    benchmark(*options, tmp_path / "again.json", "--limit", 1)
    log.write_text(log.read_text() + '{"key": "half a li')
    benchmark(*options, tmp_path / "once.json")
    benchmark(*options, tmp_path / "twice.json")
    once, twice = (json.loads((tmp_path / f"{name}.json").read_text())["images"] for name in ("once", "twice"))
    assert once == twice, "what was written behind half a line is known"
    (pairs / "target" / "1.png").write_bytes((pairs / "target" / "2.png").read_bytes())
    benchmark(*options, tmp_path / "third.json")
    third = json.loads((tmp_path / "third.json").read_text())["images"]
    assert third[0]["psnr"] != first[0]["psnr"], "the ground truth has changed"
    benchmark(*options, tmp_path / "fourth.json", "--protocol", "restormer", "--limit", 1)
    assert json.loads((tmp_path / "fourth.json").read_text())["images"][0]["psnr"] != third[0]["psnr"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_picture_that_is_gone_costs_a_saved_benchmark_one_picture(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 2)
    (pairs / "input" / "1.png").unlink()
    (pairs / "input" / "1.png").symlink_to(tmp_path / "nowhere.png")
    result = benchmark("--dataset", pairs, "--stages", 1, "--save", tmp_path / "out", code=1)
    assert f"{pairs}/input/1.png: No such file or directory" in result.stderr
    assert "1 pictures" in result.stdout
    (pairs / "input" / "1.png").unlink()
    (pairs / "input" / "1.png").symlink_to("1.png")  # in a circle
    result = benchmark("--dataset", pairs, "--stages", 1, "--json", tmp_path / "scores.json", code=1)
    assert f"{pairs}/input/1.png: Too many levels of symbolic links" in result.stderr
    assert "1 pictures" in result.stdout


def test_pictures_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_pairs(tmp_path / place, 1)
    (tmp_path / "pairs.csv").write_text("a/input/1.png,a/target/1.png\nb/input/1.png,b/target/1.png\n")
    result = benchmark("--dataset", tmp_path / "pairs.csv", "--stages", 1, "--save", tmp_path / "out")
    assert "2 pictures" in result.stdout
    saved = (tmp_path / "out").rglob("*.png")
    assert sorted(path.parent.parent.name for path in saved) == ["a", "b"]


def test_outputs_are_never_saved_over_inputs(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 1)
    earlier = tmp_path / "out" / "sapnet-general --stages 1" / "1.png"
    earlier.parent.mkdir(parents=True)
    content = shutil.copy(pairs / "input" / "1.png", earlier).read_bytes()
    (tmp_path / "pairs.csv").write_text(f"{earlier},{pairs}/target/1.png\n")
    result = benchmark("--dataset", tmp_path / "pairs.csv", "--stages", 1, "--save", tmp_path / "out", code=2)
    assert "is an input and would be overwritten" in result.stderr
    assert earlier.read_bytes() == content


def test_one_bad_pair_is_named_and_the_rest_is_scored(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3)
    (pairs / "target" / "2.png").write_text("no picture")
    result = benchmark("--dataset", pairs, "--stages", 1, code=1)
    assert "2.png: not a picture" in result.stderr
    assert "2 pictures" in result.stdout


@pytest.mark.parametrize("option", ["--json", "--csv", "--markdown", "--report"])
def test_where_nothing_can_be_written_is_said_before_scoring(option: str, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 1)
    (tmp_path / "file").write_text("no folder")
    result = benchmark("--dataset", pairs, "--stages", 1, option, tmp_path / "file" / "here", code=2)
    assert "cannot write there" in result.stderr
    assert not result.stdout
    if option != "--report":  # which is a folder
        for folder in ("", "/", tmp_path):
            assert "is a folder" in benchmark("--dataset", pairs, "--stages", 1, option, folder, code=2).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_table_that_nobody_takes_costs_no_file(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 1)
    options = ("--dataset", str(pairs), "--stages", "1", "--json", str(tmp_path / "made" / "r.json"))
    command = [sys.executable, "-m", "sapnet_cli", "benchmark", *options]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=300, check=False)
    assert result.returncode == 1
    assert b"error: No space left on device" in result.stderr
    assert json.loads((tmp_path / "made" / "r.json").read_text())["count"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text_are_written_with_backslashes(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / os.fsdecode(b"pairs\xe9"), 2)
    for folder in ("input", "target"):
        (pairs / folder / "1.png").rename(pairs / folder / os.fsdecode(b"\xe9.png"))
    files = ("--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as where LANG is en_US.UTF-8
    result = benchmark_apart(
        *("--dataset", pairs, "--stages", 1, *files, "--report", tmp_path), environment=environment
    )
    assert "pairs\\udce9" in result.stdout
    assert "\\udce9.png" in (tmp_path / "r.csv").read_text(encoding="utf-8")
    assert "\\udce9" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_names_in_the_table_are_no_markup(tmp_path: Path) -> None:
    weights = tmp_path / "[bold]:x:" / "x.safetensors"
    weights.parent.mkdir()
    save_checkpoint(random_model(stages=1), weights)
    result = benchmark("--dataset", write_pairs(tmp_path / "pairs", 1), "-w", weights)
    assert "[bold]:x:" in "".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--list shows the sets"),
        (["--dataset", "nowhere"], "nowhere: neither a folder of pairs, nor a CSV file, nor one of rain100l"),
        (["--dataset", "PAIRS", "--images", "x*"], "no rainy picture is named x*"),
        (["--dataset", "PAIRS", "--stages", "few"], "a number of units, or all"),
        (["--dataset", "PAIRS", "-w", "sapnet-general", "-w", "sapnet-general"], "named twice"),
        (["--dataset", "PAIRS", "-w", "snow"], "no weights 'snow'"),
        (["--dataset", "LIST", "--csv", "LIST"], "is an input and would be overwritten"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 2)
    (tmp_path / "list.csv").write_text("pairs/input/1.png,pairs/target/1.png\n")
    names = {"PAIRS": str(pairs), "LIST": str(tmp_path / "list.csv")}
    result = benchmark(*(names.get(each, each) for each in arguments), code=2)
    assert message in result.stderr.splitlines()[-1]
