"""Pairs are found in every layout, checked, split by scene, and cut into crops."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import random_pixels
from numpy.typing import NDArray
from PIL import Image

from sapnet_cli.data.crops import Augmentation, BatchRequest, CropLoader, CropSampler, CropSource, rain_layer
from sapnet_cli.data.pairs import find_pairs
from sapnet_cli.data.pictures import CheckedPair, PictureCache, check_pairs, read_pair, split_scenes
from sapnet_cli.data.rain import RainConfig, RainGenerator, to_linear
from sapnet_cli.data.sets import DataConfig, load_data
from sapnet_cli.errors import UsageError

LAYOUTS = [
    ("input/{}.png", "target/{}.png"),
    ("input/{}.png", "gt/{}.jpg"),
    ("rainy/{}.png", "gt/{}.png"),
    ("Rain/{}.png", "Norain/{}.png"),
    ("rain/norain-{}x2.png", "norain/norain-{}.png"),
    ("rainy/rain-00{}.png", "norain-00{}.png"),
    ("rain-{}.png", "norain-{}.png"),
    ("rainy_image/{}_1.jpg", "ground_truth/{}.jpg"),
    ("rain-{}th.png", "norain-{}th.png"),
    ("{}_in.png", "{}_GT.png"),
    ("data/{}_rain.png", "gt/{}_clean.png"),
    ("rain/00{}.png", "gt/00{}gt.png"),
    ("in/im_{}_s80_a04.png", "gt/im_{}.png"),
    ("rainy/street/{}.png", "clean/street/{}.png"),
]


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_pairs(folder: Path, count: int = 4, side: int = 48) -> Path:
    """Pairs of noise, one in twenty pixels of the rainy ones white."""
    for number in range(1, count + 1):
        clean = random_pixels(side, side + 16, seed=number)
        streaks = np.random.default_rng(number).random((side, side + 16, 1)) > 0.95
        save(folder / "input" / f"{number}.png", np.where(streaks, 255, clean).astype(np.uint8))
        save(folder / "target" / f"{number}.png", clean)
    return folder


@pytest.mark.parametrize(("rainy", "clean"), LAYOUTS)
def test_layouts_of_pairs(rainy: str, clean: str, tmp_path: Path) -> None:
    for number in (10, 2, 1):
        for name in (rainy, clean):
            save(tmp_path / name.format(number), random_pixels(8, 8))
    save(tmp_path / rainy.format(3), random_pixels(8, 8))
    save(tmp_path / clean.format(4), random_pixels(8, 8))
    listing = find_pairs(tmp_path)
    expected = [(tmp_path / rainy.format(number), tmp_path / clean.format(number)) for number in (1, 2, 10)]
    assert [(pair.rainy, pair.clean) for pair in listing.pairs] == expected
    assert len(listing.problems) == 2
    assert str(tmp_path / rainy.format(3)) in listing.problems[0]
    assert str(tmp_path / clean.format(4)) in listing.problems[1]


def test_several_rains_on_one_scene(tmp_path: Path) -> None:
    for name in ("rainy_image/7_1.jpg", "rainy_image/7_2.jpg", "rainy_image/7_10.jpg", "ground_truth/7.jpg"):
        save(tmp_path / name, random_pixels(8, 8))
    pairs = find_pairs(tmp_path).pairs
    assert [pair.rainy.name for pair in pairs] == ["7_1.jpg", "7_2.jpg", "7_10.jpg"]
    assert {pair.clean.name for pair in pairs} == {"7.jpg"}


def test_equal_names_in_other_folders_are_other_scenes(tmp_path: Path) -> None:
    for name in ("input/a/1.png", "input/b/1.png", "input/.hidden/1.png", "target/a/1.png", "target/b/1.png"):
        save(tmp_path / name, random_pixels(8, 8))
    listing = find_pairs(tmp_path)
    assert [(pair.rainy.parent.name, pair.clean.parent.name) for pair in listing.pairs] == [("a", "a"), ("b", "b")]
    assert listing.problems == ()


def test_each_picture_of_a_list_has_a_name_of_its_own(tmp_path: Path) -> None:
    rainy = ("a/1.png", "b/1.png", "b/1.jpg", "b/2.jpg")
    for name in (*rainy, "clean.png"):
        save(tmp_path / name, random_pixels(8, 8))
    (tmp_path / "pairs.csv").write_text("".join(f"{name},clean.png\n" for name in rainy))
    pairs = find_pairs(tmp_path / "pairs.csv").pairs
    assert [pair.name for pair in pairs] == list(rainy)
    assert [pair.output for pair in pairs] == ["a/1.png", "b/1.png.png", "b/1.jpg.png", "b/2.png"]


def test_no_picture_is_its_own_truth(tmp_path: Path) -> None:
    for name in ("rain_1_clean.png", "2_rain.png", "2_clean.png"):
        save(tmp_path / name, random_pixels(8, 8))
    assert [(pair.rainy.name, pair.clean.name) for pair in find_pairs(tmp_path).pairs] == [
        ("2_rain.png", "2_clean.png")
    ]


def test_names_that_fit_two_clean_pictures_fit_none(tmp_path: Path) -> None:
    for name in ("rainy/1_rain.png", "rainy/2_rain.png", "gt/1_clean.png", "gt/1_gt.png", "gt/2_clean.png"):
        save(tmp_path / name, random_pixels(8, 8))
    listing = find_pairs(tmp_path)
    assert [(pair.rainy.name, pair.clean.name) for pair in listing.pairs] == [("2_rain.png", "2_clean.png")]
    assert len(listing.problems) == 3


def test_scenes_of_gt_rain(tmp_path: Path) -> None:
    for scene, frames in {
        "Oinari_0-3": ("R-000", "R-001", "C-000"),
        "Gurutto_1-2": ("R-000", "R-001", "C-001"),
    }.items():
        for frame in frames:
            save(tmp_path / scene / f"{scene}-Webcam-{frame}.png", random_pixels(8, 8))
    save(tmp_path / "Gurutto_1-2" / "Gurutto_1-2-Webcam-C-000.png", random_pixels(8, 8))
    save(tmp_path / "lost" / "lost-Webcam-R-000.png", random_pixels(8, 8))
    listing = find_pairs(tmp_path)
    assert [(pair.rainy.stem[-13:], pair.clean.stem[-5:]) for pair in listing.pairs] == [
        ("-Webcam-R-000", "C-000"),
        ("-Webcam-R-001", "C-001"),
        ("-Webcam-R-000", "C-000"),
        ("-Webcam-R-001", "C-000"),
    ]
    assert [problem for problem in listing.problems if "lost-Webcam" in problem] == list(listing.problems)
    assert len(find_pairs(tmp_path / "Oinari_0-3").pairs) == 2


def test_a_folder_of_sets_says_which_one_to_name(tmp_path: Path) -> None:
    for part in ("test", "train"):
        for name in (f"{part}/rain/norain-1x2.png", f"{part}/norain/norain-1.png"):
            save(tmp_path / name, random_pixels(8, 8))
    with pytest.raises(UsageError, match=f"name the folder below that has them, as {tmp_path / 'test'}"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("side_by_side", ["clean-left", "clean-right"])
def test_pairs_side_by_side(side_by_side: str, tmp_path: Path) -> None:
    left, right = random_pixels(8, 10), random_pixels(8, 10, seed=1)
    for name in ("10.png", "2.png"):
        save(tmp_path / name, np.concatenate((left, right), axis=1))
    with pytest.raises(UsageError, match="give --side-by-side"):
        find_pairs(tmp_path)
    listing = find_pairs(tmp_path, side_by_side)  # type: ignore[arg-type]
    assert [pair.rainy.name for pair in listing.pairs] == ["2.png", "10.png"]
    rainy, clean = read_pair(listing.pairs[0])
    assert np.array_equal(clean, left if side_by_side == "clean-left" else right)
    assert np.array_equal(rainy, right if side_by_side == "clean-left" else left)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "\ufeffclean,rainy\n"])
def test_pairs_from_a_csv_file(header: str, separator: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    columns = ("target", "input") if header else ("input", "target")
    rows = [f"{columns[0]}/{number}.png,{columns[1]}/{number}.png\n" for number in (1, 2, 3)]
    text = header + "".join(rows) + "alone.png\n\n"
    (tmp_path / "pairs.csv").write_text(text.replace(",", separator), encoding="utf-8")
    listing = find_pairs(tmp_path / "pairs.csv")
    assert [pair.rainy for pair in listing.pairs] == [tmp_path / "input" / f"{number}.png" for number in (1, 2)]
    assert listing.problems[0].endswith("3.png does not exist")
    assert "expected two paths" in listing.problems[1]
    (tmp_path / "pairs.csv").write_text("nothing.png,nowhere.png\n")
    with pytest.raises(UsageError, match="no line names two files"):
        find_pairs(tmp_path / "pairs.csv")


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rainy and clean pairs found"):
        find_pairs(tmp_path)
    with pytest.raises(UsageError, match="neither a folder"):
        find_pairs(tmp_path / "nowhere")


def test_bad_pairs_are_named_and_left_out(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    (tmp_path / "input" / "1.png").write_text("no picture")
    whole = (tmp_path / "input" / "2.png").read_bytes()
    (tmp_path / "input" / "2.png").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "target" / "3.png", random_pixels(48, 65))
    (tmp_path / "target" / "4.png").unlink()
    save(tmp_path / "input" / "5.png", random_pixels(8, 64))
    save(tmp_path / "target" / "5.png", random_pixels(8, 64))
    data = load_data(DataConfig(data=((str(tmp_path), 1.0),), held_out=0.3), 2**30)
    assert sorted(Path(problem.split(":")[0].split(" ")[0]).name for problem in data.problems) == [
        f"{number}.png" for number in (1, 2, 3, 4, 5)
    ]
    assert any("is 64x48, but" in problem for problem in data.problems)
    assert any("too small" in problem for problem in data.problems)
    assert len(data.sources[0].pairs) == 2
    assert len(data.validation) == 1
    assert "3 pairs, 3 of 64x48; 2 to train on, 1 held out" in data.summary[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_the_pairs_is_not_waited_for(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    for name in ("input/3.png", "target/3.png"):
        os.mkfifo(tmp_path / name)
    listing = find_pairs(tmp_path)
    assert [pair.rainy.name for pair in listing.pairs] == ["1.png", "2.png"]
    assert not listing.problems


def test_too_few_good_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    (tmp_path / "input" / "1.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"only 1 good pairs(?s:.*)1\.png: not a picture"):
        load_data(DataConfig(data=((str(tmp_path), 1.0),)), 2**30)


def test_scenes_are_split_over_all_sets_by_what_they_show() -> None:
    def pair(name: str, scene: str) -> CheckedPair:
        from sapnet_cli.data.pairs import Pair

        return CheckedPair(Pair(Path(name), Path(name)), (64, 64), scene, name)

    light = [pair(f"light{number}", f"scene{number}") for number in range(40)]
    heavy = [pair(f"heavy{number}", f"scene{number}") for number in range(60)]
    train, held = split_scenes([light, heavy], 0.1, seed=0)
    assert [len(each) for each in held] == [4, 6]
    assert not {each.scene for each in train[0] + train[1]} & {each.scene for each in held[0] + held[1]}
    assert split_scenes([light, heavy], 0.1, seed=0) == (train, held)
    assert split_scenes([light, heavy], 0.1, seed=1) != (train, held)
    assert split_scenes([light], 0.0, seed=0) == ([light], [[]])


def test_pairs_to_validate_on_are_never_trained_on(tmp_path: Path) -> None:
    write_pairs(tmp_path / "all", 6)
    write_pairs(tmp_path / "val", 2)
    data = load_data(DataConfig(data=((str(tmp_path / "all"), 1.0),), validation=(str(tmp_path / "val"),)), 2**30)
    assert len(data.sources[0].pairs) == 4
    assert len(data.validation) == 2
    assert "2 pairs show scenes of the validation folders" in data.problems[0]


def sampler(folder: Path, augmentation: Augmentation | None = None, capacity: int = 2**30) -> CropSampler:
    cache = PictureCache(capacity)
    pairs, problems = check_pairs(find_pairs(folder).pairs, cache)
    assert not problems
    return CropSampler([CropSource(tuple(pairs))], cache, 0, augmentation)


def test_a_shared_ground_truth_is_kept_once(tmp_path: Path) -> None:
    for name in ("rainy_image/7_1.png", "rainy_image/7_2.png", "ground_truth/7.png"):
        save(tmp_path / name, random_pixels(32, 32))
    cache = PictureCache(2**20)
    pairs, problems = check_pairs(find_pairs(tmp_path).pairs, cache)
    assert not problems
    assert len(cache) == 3
    assert cache.read(pairs[0].pair)[1] is cache.read(pairs[1].pair)[1]


def test_crops_of_a_pair_stay_together(tmp_path: Path) -> None:
    rainy, clean = sampler(write_pairs(tmp_path)).batch(BatchRequest(0, 0, 16, 24))
    assert rainy.shape == clean.shape == (16, 24, 24, 3)
    touched = (rainy != clean).any(axis=3)
    assert 0.01 < touched.mean() < 0.1
    assert (rainy[touched] == 255).all()


def test_crops_are_the_same_for_any_split_over_processes_threads_and_memory(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    whole = sampler(
        folder,
        Augmentation(
            mix=0.5,
            recombine=0.5,
            faint=0.5,
            fine=0.5,
            coarse=0.5,
            enlarge=0.5,
            slant=0.5,
            partial=0.5,
            patchwork=0.5,
            dim=0.5,
            noise=0.5,
        ),
    )
    expected = whole.batch(BatchRequest(7, 0, 4, 24))
    uncached = sampler(folder, whole.augmentation, capacity=0)
    assert len(uncached.cache) == 0
    halves = [uncached.batch(BatchRequest(7, first, 2, 24)) for first in (0, 2)]
    for index in range(2):
        assert np.array_equal(expected[index], np.concatenate([half[index] for half in halves]))
    loader = CropLoader(whole, workers=2)
    for iteration in (5, 6, 7):
        crops = loader.get(BatchRequest(iteration, 0, 4, 24), last=7)
    assert np.array_equal(crops[0], expected[0])
    larger, _ = loader.get(BatchRequest(8, 0, 1, 32), last=7)
    assert larger.shape == (1, 32, 32, 3)
    loader.close()
    assert not np.array_equal(expected[0], whole.batch(BatchRequest(8, 0, 4, 24))[0])


@pytest.mark.parametrize("change", ["recombine", "mix", "faint", "fine"])
def test_augmentation_changes_the_rain(change: str, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)

    def strength(augmentation: Augmentation) -> float:
        rainy, clean = sampler(folder, augmentation).batch(BatchRequest(0, 0, 64, 24))
        return float(np.abs(rainy.astype(int) - clean).mean())

    plain, changed = strength(Augmentation()), strength(Augmentation(**{change: 1.0}))
    assert {
        "recombine": 0.5 * plain < changed < 1.1 * plain,
        "mix": changed > 1.2 * plain,
        "faint": changed < 0.75 * plain,
        "fine": 0.5 * plain < changed < 1.5 * plain,
    }[change]
    assert changed != plain


def write_streaks(folder: Path, side: int) -> None:
    """Three pairs with upright streaks every nine pixels."""
    for number in range(3):
        clean = random_pixels(side, side, seed=number) // 2
        streaks = np.zeros((side, side, 1), np.uint8)
        streaks[:, number::9] = 100
        save(folder / "target" / f"{number}.png", clean)
        save(folder / "input" / f"{number}.png", clean + streaks)


def test_coarse_widens_the_streaks_and_leaves_the_scene(tmp_path: Path) -> None:
    write_streaks(tmp_path, 64)
    request = BatchRequest(0, 0, 32, 48)
    plain, coarse = (sampler(tmp_path, Augmentation(turn=False, coarse=chance)).batch(request) for chance in (0.0, 1.0))
    assert np.array_equal(plain[1], coarse[1])

    def distance(crops: tuple[np.ndarray, np.ndarray]) -> float:
        """From streak to streak."""
        layer = crops[0].astype(float) - crops[1]
        rises = ((layer[:, :, 1:] > 40) & (layer[:, :, :-1] <= 40)).mean()
        return float(1 / rises)

    assert distance(plain) == pytest.approx(9, rel=0.15)
    assert 9 * 1.4 < distance(coarse) < 9 * 2.5


def test_enlarge_widens_scene_and_streaks_alike(tmp_path: Path) -> None:
    write_streaks(tmp_path, 64)
    request = BatchRequest(0, 0, 32, 48)
    plain, large = (sampler(tmp_path, Augmentation(turn=False, enlarge=chance)).batch(request) for chance in (0.0, 1.0))

    def steps(clean: np.ndarray) -> float:
        """From a pixel to the next, of scenes whose pixels have nothing to do with each other."""
        return float(np.abs(np.diff(clean.astype(float), axis=2)).mean())

    def wide(crops: tuple[np.ndarray, np.ndarray]) -> float:
        layer = crops[0].astype(float) - crops[1]
        return float((layer.max(axis=3) > 50).sum() / ((layer[:, :, 1:] > 50) & (layer[:, :, :-1] <= 50)).any(3).sum())

    assert steps(large[1]) < 0.8 * steps(plain[1])
    assert wide(plain) < 1.2
    assert 1.4 < wide(large) < 3
    assert float((large[0].astype(float) - large[1]).max()) > 90  # no scene in what differs: both were cut alike


def test_slant_turns_the_streaks_and_leaves_the_scene(tmp_path: Path) -> None:
    write_streaks(tmp_path, 96)
    request = BatchRequest(0, 0, 32, 48)
    plain, slanted = (sampler(tmp_path, Augmentation(turn=False, slant=chance)).batch(request) for chance in (0.0, 1.0))
    assert np.array_equal(plain[1], slanted[1])

    def angles(crops: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Of the streaks of each crop against the vertical, in degrees, by its tensor of structure."""
        down, right = np.gradient((crops[0].astype(float) - crops[1]).mean(axis=3), axis=(1, 2))
        sums = [(a * b).sum(axis=(1, 2)) for a, b in ((down, right), (right, right), (down, down))]
        return np.rad2deg(0.5 * np.arctan2(2 * sums[0], sums[1] - sums[2]))

    assert np.abs(angles(plain)).max() < 1
    turned = angles(slanted)
    assert turned.min() < -40
    assert turned.max() > 40
    assert np.abs(turned).max() < 65
    strength = [(crops[0].astype(float) - crops[1]).mean() for crops in (plain, slanted)]
    assert strength[1] == pytest.approx(strength[0], rel=0.1)


def test_noise_is_the_same_in_crop_and_ground_truth(tmp_path: Path) -> None:
    save(tmp_path / "input" / "1.png", np.full((64, 64, 3), 160, np.uint8))
    save(tmp_path / "target" / "1.png", np.full((64, 64, 3), 100, np.uint8))
    rainy, clean = sampler(tmp_path, Augmentation(noise=1.0)).batch(BatchRequest(0, 0, 32, 48))
    assert (rainy - clean == 60).all()
    deviations = clean.astype(float).std(axis=(1, 2, 3))
    assert 0.9 < deviations.min() < 3
    assert 6 < deviations.max() < 13
    neighbours = [np.corrcoef(crop[:, 1:].ravel(), crop[:, :-1].ravel())[0, 1] for crop in clean]
    assert min(neighbours) < 0.1
    assert max(neighbours) > 0.4


def test_dim_darkens_and_tints_rain_and_scene_alike(tmp_path: Path) -> None:
    folder, request = write_pairs(tmp_path), BatchRequest(0, 0, 32, 24)
    plain, dim = (sampler(folder, Augmentation(dim=chance)).batch(request) for chance in (0.0, 1.0))
    lights, tints = set(), []
    for rainy, clean, *before in zip(*dim, *plain):
        light = clean.sum(axis=(0, 1)) / before[1].sum(axis=(0, 1))
        assert 0.33 < light.max() < 1.02
        tints.append(light.min() / light.max())
        for now, was in ((rainy, before[0]), (clean, before[1])):
            assert np.abs(now - was * light).max() < 2
        lights.add(tuple(light.round(2)))
    assert len(lights) > 20
    assert all(len(set(light)) > 1 for light in lights)
    assert 0.28 < min(tints) < 0.5, "some as under sodium lamps"


def test_partial_rain_is_on_one_side_or_before_what_is_dark(tmp_path: Path) -> None:
    dark_and_bright = np.random.default_rng(0).integers(0, 200, (12, 16, 3)).astype(np.uint8)
    clean = dark_and_bright.repeat(40, axis=0).repeat(40, axis=1)
    save(tmp_path / "target" / "1.png", clean)
    save(tmp_path / "input" / "1.png", clean + np.uint8(50))
    request = BatchRequest(0, 0, 64, 160)
    all_over = sampler(tmp_path).batch(request)
    shares, darker, aside = [], 0, 0
    for rainy, clean, whole in zip(*sampler(tmp_path, Augmentation(partial=1.0)).batch(request), all_over[1]):
        assert np.array_equal(clean, whole), "ground truths stay"
        added = rainy.astype(int) - clean
        assert added.min() >= 0
        assert added.max() <= 50
        rains = added.mean(axis=2) > 25
        shares.append(rains.mean())
        before, beside = clean[rains].mean(), clean[~rains].mean()
        rows, columns = np.nonzero(rains)
        off_centre = np.hypot(rows.mean() - 79.5, columns.mean() - 79.5)
        darker += before < beside - 30
        aside += off_centre > 40
    assert 0.01 < min(shares) < 0.15
    assert 0.4 < max(shares) < 0.6
    assert darker > 16
    assert aside > 16


def test_patchwork_is_a_strip_of_another_scene_of_a_dry_one_or_of_one_grey(tmp_path: Path) -> None:
    for number in range(4):
        # large: no two crops overlap
        clean = np.random.default_rng(number).integers(0, 200, (480, 640, 3)).astype(np.uint8)
        save(tmp_path / "target" / f"{number}.png", clean)
        save(tmp_path / "input" / f"{number}.png", clean + np.uint8(50))
    request = BatchRequest(0, 0, 96, 24)
    plain = sampler(tmp_path).batch(request)
    kinds = {"rainy": 0, "dry": 0, "grey": 0}
    sides = set()
    for rainy, clean, *whole in zip(*sampler(tmp_path, Augmentation(patchwork=1.0)).batch(request), *plain):
        changed = (clean != whole[1]).any(axis=2)
        rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
        strip = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed[strip].mean() > 0.9
        kept = np.ones((24, 24), bool)
        kept[strip] = False
        assert 0.35 < kept.mean() < 1
        assert np.array_equal(rainy[kept], whole[0][kept]), "with the rain that it had"
        sides.add((len(rows) < 24, len(columns) < 24, int(rows[0]), int(columns[0])))
        dry = np.array_equal(rainy[strip], clean[strip])
        kinds["rainy" if not dry else "grey" if np.ptp(clean[strip]) == 0 else "dry"] += 1
    assert min(kinds.values()) > 15
    assert {side[:2] for side in sides} == {(True, False), (False, True)}
    assert len(sides) > 10


def test_rain_that_was_cut_at_white_is_lifted_off_whole() -> None:
    clean = np.full((40, 40, 3), (60, 120, 180), np.uint8)
    clean[:, 20:] = (150, 200, 250)
    clean[25:32, 22:36] = 253  # a white roof
    rain = np.zeros((40, 40, 1))
    rain[:, 3::6] = 100
    rainy = np.minimum(255, clean + rain).astype(np.uint8)
    layer = rain_layer(rainy, clean)
    roof = (rainy == 255).all(axis=2)
    assert np.array_equal(layer[~roof], np.broadcast_to(rain, rainy.shape)[~roof])
    assert layer[roof].mean() > 10  # the difference there is 2, the rain 100
    assert not rain_layer(clean, clean).any()
    white = np.full((8, 8, 3), 255, np.uint8)
    assert not rain_layer(white, white).any()


def test_rain_is_not_lifted_off_white_skies(tmp_path: Path) -> None:
    clean = np.full((32, 256, 3), 255, np.uint8)
    clean[:, 128:] = 50
    rainy = np.minimum(255, clean + 100.0).astype(np.uint8)
    save(tmp_path / "rain-1.png", rainy)
    save(tmp_path / "norain-1.png", clean)
    crops, clean = sampler(tmp_path, Augmentation(recombine=1.0)).batch(BatchRequest(0, 0, 32, 16))
    dark = clean.max(axis=(1, 2, 3)) == 50
    assert 8 < dark.sum() < 24
    assert np.median(crops[dark]) == 150


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [False, True])
def test_rain_comes_from_the_side_only_in_turned_crops(flip: bool, turn: bool, tmp_path: Path) -> None:
    for name, column in (("rain-1.png", 255), ("norain-1.png", 0)):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[4:, 5] = column  # one streak, left of the middle, down to the ground
        Image.fromarray(pixels).save(tmp_path / name)
    rainy, _ = sampler(tmp_path, Augmentation(flip=flip, turn=turn)).batch(BatchRequest(0, 0, 64, 32))
    views = {crop.tobytes() for crop in rainy}
    assert len(views) == {(False, False): 1, (True, False): 4, (False, True): 4, (True, True): 8}[flip, turn]
    upright = [crop.any(axis=(0, 2)).sum() == 1 for crop in rainy]
    assert all(upright) != turn


def test_pictures_smaller_than_the_crop_are_mirrored(tmp_path: Path) -> None:
    rainy, clean = sampler(write_pairs(tmp_path, side=32)).batch(BatchRequest(0, 0, 4, 64))
    assert rainy.shape == clean.shape == (4, 64, 64, 3)


def test_rain_is_drawn_on_clean_photos(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "clean" / f"{number}.png", random_pixels(64, 64, seed=number))
        save(tmp_path / "layers" / f"{number}.png", np.full((64, 64, 3), 40, np.uint8))
    config = DataConfig(clean=((str(tmp_path / "clean"), 1.0),), rain_layers=(str(tmp_path / "layers"),))
    data = load_data(config, 2**30)
    crops = CropSampler(data.sources, data.cache, 0)
    rainy, clean = crops.batch(BatchRequest(0, 0, 32, 32))
    assert (rainy != clean).any(axis=(1, 2, 3)).all()
    from_layers = [(r == np.minimum(255, c.astype(int) + r[0, 0] - c[0, 0])).all() for r, c in zip(rainy, clean)]
    assert 4 < sum(from_layers) < 28
    assert np.array_equal(rainy, crops.batch(BatchRequest(0, 0, 32, 32))[0])
    with pytest.raises(UsageError, match="--clean"):
        load_data(DataConfig(rain_layers=(str(tmp_path / "layers"),)), 2**30)


def test_drawn_rain_brightens_dark_scenes_and_varies() -> None:
    generator, dark = RainGenerator(RainConfig(sharpening=0.0, jpeg=None)), np.full((96, 96, 3), 30, np.uint8)
    means = []
    for seed in range(24):
        rainy, clean = generator.draw(dark, np.random.default_rng(seed))
        assert rainy.dtype == clean.dtype == np.uint8
        assert rainy.shape == clean.shape == dark.shape
        assert np.array_equal(rainy, generator.draw(dark, np.random.default_rng(seed))[0])
        assert (rainy >= clean).all()
        assert clean.min() == clean.max(), "the ground truth has no rain"
        means.append(float(rainy.mean()) - float(clean.mean()))
    assert min(means) < 15
    assert max(means) > max(25, 4 * min(means))


def test_half_the_drawn_pictures_are_sharpened_with_their_truth() -> None:
    grey = np.full((96, 96, 3), 90, np.uint8)
    grey[:, 48:] = 120
    plain = RainGenerator(RainConfig(sharpening=0.0, veil=0.0, jpeg=None))
    sharpening = RainGenerator(RainConfig(veil=0.0, jpeg=None))
    fringed = streaks = 0
    for seed in range(16):
        _, unsharpened = plain.draw(grey, np.random.default_rng(seed))
        rainy, clean = sharpening.draw(grey, np.random.default_rng(seed))
        if (clean == unsharpened).all():
            continue
        assert clean.min() < unsharpened.min(), "an edge of the clean picture got a dark fringe"
        fringed += 1
        streaks += int((rainy < clean).any())
    assert 3 < fringed < 13
    assert streaks > fringed / 2, "so did most pictures' streaks"


def test_half_the_drawn_pictures_are_compressed_with_their_truth() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    rain = {"sharpening": 0.0, "veil": 0.0, "exposure": (1.0, 1.0)}
    plain, coarse = RainGenerator(RainConfig(**rain, jpeg=None)), RainGenerator(RainConfig(**rain, jpeg=(10, 10)))
    compressed = 0
    for seed in range(16):
        rainy, clean = coarse.draw(noise, np.random.default_rng(seed))
        before, unchanged = plain.draw(noise, np.random.default_rng(seed))
        assert np.array_equal(unchanged, noise)
        assert np.array_equal(rainy, before) == np.array_equal(clean, noise)
        compressed += not np.array_equal(clean, noise)
    assert 3 < compressed < 13


def rain_on_grey(config: RainConfig) -> list[NDArray[np.float64]]:
    """The green of eight rains on an even dark grey, (96, 96) each."""
    generator, grey = RainGenerator(config), np.full((96, 96, 3), 40, np.uint8)
    return [generator.draw(grey, np.random.default_rng(seed))[0][..., 1].astype(float) for seed in range(8)]


def test_gusts_turn_streaks_against_each_other() -> None:
    def scatter(turbulence: float) -> float:
        """How much brightness changes from pixel to pixel along the mean fall, for each change across it."""
        config = RainConfig(
            exposure_time=(1 / 100, 1 / 100), focal_length=(1500.0, 1500.0), slant=0.0, veil=0.0, sharpening=0.0,
            jpeg=None, turbulence=(turbulence, turbulence),
        )  # fmt: skip
        planes = rain_on_grey(config)
        return float(np.mean([np.abs(np.diff(p, axis=0)).mean() / np.abs(np.diff(p, axis=1)).mean() for p in planes]))

    assert scatter(20.0) > 1.3 * scatter(0.1)


def test_a_wide_aperture_softens_near_streaks() -> None:
    def steepness(millimetres: float) -> float:
        config = RainConfig(aperture=(millimetres, millimetres), focal_length=(1500.0, 1500.0), veil=0.0, jpeg=None)
        return float(np.mean([np.abs(np.diff(p, axis=1)).mean() / p.std() for p in rain_on_grey(config)]))

    assert steepness(0.5) > 1.3 * steepness(10.0)


def test_drops_differ_in_brightness() -> None:
    config = RainConfig(
        exposure_time=(1 / 3000, 1 / 3000), focal_length=(800.0, 800.0), layers=(6.0, 12.0), drops=(0.003, 0.003),
        strength=(1.0, 1.0), coverage=(1.0, 1.0), light=(1.0, 1.0), veil=0.0, sharpening=0.0, jpeg=None,
    )  # fmt: skip
    rainy, _ = RainGenerator(config).draw(np.zeros((192, 192, 3), np.uint8), np.random.default_rng(0))
    light = to_linear(rainy)[..., 1]
    peaks = light[(light == cv2.dilate(light, np.ones((5, 5)))) & (light > 0.003)]
    assert len(peaks) > 60
    assert peaks.std() > 0.8 * peaks.mean(), "as an exponential distribution's, not as the diameters' alone"


def test_streaks_are_long_when_the_shutter_is_slow() -> None:
    def elongation(seconds: float) -> float:
        config = RainConfig(exposure_time=(seconds, seconds), slant=0.0, veil=0.0, focal_length=(800.0, 800.0))
        correlations = []
        for plane in rain_on_grey(config):
            plane -= plane.mean()
            correlations.append((plane[12:] * plane[:-12]).mean() / max(plane.var(), 1e-9))
        return float(np.mean(correlations))

    assert elongation(1 / 40) > elongation(1 / 2000) + 0.2


def test_clean_photos_may_lie_in_folders(tmp_path: Path) -> None:
    for name in ("a.png", "2024/b.png", "2024/june/c.png"):
        save(tmp_path / name, random_pixels(32, 32, seed=ord(name[-5])))
    data = load_data(DataConfig(clean=((str(tmp_path), 1.0),), held_out=0.0), 2**30)
    assert [pair.pair.rainy.name for pair in data.sources[0].pairs] == ["a.png", "b.png", "c.png"]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell's file names")
def test_a_folder_that_ends_in_a_number_is_not_a_weight(tmp_path: Path) -> None:
    from sapnet_cli.cli.train import _weighted

    (tmp_path / "set:2").mkdir()
    assert _weighted([f"{tmp_path}/set:2", "other:3", "third", "c:/data"]) == (
        (f"{tmp_path}/set:2", 1.0),
        ("other", 3.0),
        ("third", 1.0),
        ("c:/data", 1.0),
    )
    with pytest.raises(UsageError, match="above 0"):
        _weighted(["set:0"])
