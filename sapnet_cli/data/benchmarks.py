"""The public sets that deraining is scored on, and how to tell that one is what it is said to be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from sapnet_cli.data.pairs import PairListing, find_in_folder
from sapnet_cli.errors import UsageError

DATA_VARIABLE = "SAPNET_DATA"


@dataclass(frozen=True)
class Published:
    """A figure that others published, by their own count.

    Attributes:
        method: its name.
        psnr: in dB.
        ssim: structural similarity.
        trained_on: what its weights saw.
    """

    method: str
    psnr: float
    ssim: float
    trained_on: str


@dataclass(frozen=True)
class BenchmarkSet:
    """One public set of rainy and clean pictures.

    Attributes:
        name: what `--dataset` takes.
        title: as the field writes it.
        paper: where it comes from.
        count: pictures that are tested on.
        sizes: of the pictures, in words.
        source: page of its authors, where to ask for it.
        folders: names that its folder goes by, beside its title.
        rainy_psnr: of the rainy pictures by the protocol `prenet`, in dB; None where it is not known. Measured for
            Rain100; as Wang et al. print it for Rain12, Rain1400 and SPA-Data (RCDNet, CVPR 2020).
        published: figures of others.
    """

    name: str
    title: str
    paper: str
    count: int
    sizes: str
    source: str
    folders: tuple[str, ...] = ()
    rainy_psnr: float | None = None
    published: tuple[Published, ...] = field(default=())


_RAIN13K = "Rain13K"
_JORDER = "www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html"
_FU = "xueyangfu.github.io/projects/cvpr2017.html"

BENCHMARKS = {
    each.name: each
    for each in (
        BenchmarkSet(
            "rain100l",
            "Rain100L",
            "Yang et al., CVPR 2017, arXiv 1609.07769",
            100,
            "481x321 and 321x481",
            _JORDER,
            rainy_psnr=26.901,
            published=(
                Published("PReNet", 37.48, 0.979, "RainTrainL"),
                Published("RCDNet", 40.0, 0.986, "RainTrainL"),
                Published("MPRNet", 36.40, 0.965, _RAIN13K),
                Published("Restormer", 38.99, 0.978, _RAIN13K),
            ),
        ),
        BenchmarkSet(
            "rain100h",
            "Rain100H",
            "Yang et al., CVPR 2017, arXiv 1609.07769",
            100,
            "481x321 and 321x481",
            _JORDER,
            rainy_psnr=13.556,
            published=(
                Published("PReNet", 29.46, 0.899, "RainTrainH"),
                Published("RCDNet", 31.3, 0.909, "RainTrainH"),
                Published("MPRNet", 30.41, 0.890, _RAIN13K),
                Published("Restormer", 31.46, 0.904, _RAIN13K),
            ),
        ),
        BenchmarkSet(
            "rain12", "Rain12", "Li et al., CVPR 2016", 12, "481x321 and 321x481", "yu-li.github.io", (), 30.14
        ),
        BenchmarkSet(
            "rain200l", "Rain200L", "Yang et al., CVPR 2017, arXiv 1609.07769", 200, "481x321 and 321x481", _JORDER
        ),
        BenchmarkSet(
            "rain200h", "Rain200H", "Yang et al., CVPR 2017, arXiv 1609.07769", 200, "481x321 and 321x481", _JORDER
        ),
        BenchmarkSet(
            "test100",
            "Test100",
            "Zhang et al., arXiv 1701.05957 (Rain800)",
            100,
            "many sizes",
            "github.com/hezhangsprinter/ID-CGAN",
            ("rain800",),
        ),
        BenchmarkSet("rain1400", "Rain1400", "Fu et al., CVPR 2017", 1400, "many sizes", _FU, (), 25.24),
        BenchmarkSet("test2800", "Test2800", "Fu et al., CVPR 2017", 2800, "many sizes", _FU),
        BenchmarkSet(
            "test1200",
            "Test1200",
            "Zhang and Patel, CVPR 2018, arXiv 1802.07412",
            1200,
            "512x512",
            "github.com/hezhangsprinter/DID-MDN",
        ),
        BenchmarkSet(
            "spa-data",
            "SPA-Data",
            "Wang et al., CVPR 2019, arXiv 1904.01538",
            1000,
            "512x512",
            "stevewongv.github.io/derain-project.html",
            ("spa",),
            34.15,
        ),
        BenchmarkSet(
            "gt-rain",
            "GT-RAIN",
            "Ba et al., ECCV 2022, arXiv 2206.10779",
            2100,
            "many sizes",
            "visual.ee.ucla.edu/gt_rain.htm",
            ("gtrain",),
        ),
    )
}


def data_folders(data: Path | None, cache: Path) -> list[Path]:
    """Where sets are looked for: the folder that the user names, else SAPNET_DATA, and the cache.

    Raises:
        UsageError: the user names what is no folder.
    """
    named = data or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if named is not None and not named.is_dir():
        raise UsageError(f"{named}: no such folder; name the one that holds the sets with --data or {DATA_VARIABLE}")
    return [folder for folder in (named, cache / "datasets") if folder is not None and folder.is_dir()]


def find_benchmark(benchmark: BenchmarkSet, folders: list[Path]) -> PairListing | None:
    """Looks for a set by the names that its folder goes by, in any case; its pairs may lie in a folder for tests below.

    Returns:
        Its pairs, or None if it is not here.
    """
    names = {benchmark.name, benchmark.title.lower(), *benchmark.folders}
    for folder in folders:
        for path in sorted([folder, *(each for each in folder.iterdir() if each.is_dir())]):
            if path.name.lower() not in names:
                continue
            for place in (path, path / "test", path / "testing", path / f"{path.name}_test"):
                if place.is_dir() and (listing := find_in_folder(place)):
                    return listing
    return None
