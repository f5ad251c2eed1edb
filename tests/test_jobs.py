"""Which file goes where, and what is refused before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import plan, serving

from sapnet_cli.errors import UsageError
from sapnet_cli.files import name_here, open_path
from sapnet_cli.imaging.jobs import OutputOptions, plan_jobs
from sapnet_cli.imaging.shard import Shard, read_shard


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "photos/a.jpg",
        "photos/b.PNG",
        "photos/sub/a.jpg",
        "photos/notes.txt",
        "photos/.hidden.jpg",
        "other/a.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.usefixtures("photos")
class TestPlan:
    def test_a_folder_is_mirrored(self) -> None:
        assert plan("photos") == {
            "photos/a.jpg": "clean/a.jpg",
            "photos/b.PNG": "clean/b.PNG",
            "photos/sub/a.jpg": "clean/sub/a.jpg",
        }

    def test_files_and_patterns(self) -> None:
        assert plan("photos/b.PNG", "other/a.jpg") == {"photos/b.PNG": "clean/b.PNG", "other/a.jpg": "clean/a.jpg"}
        assert plan("photos/**/*.jpg") == {"photos/a.jpg": "clean/a.jpg", "photos/sub/a.jpg": "clean/sub/a.jpg"}
        assert plan("photos/a.jp?") == {"photos/a.jpg": "clean/a.jpg"}

    def test_the_same_file_twice_is_done_once(self) -> None:
        assert plan("photos/a.jpg", "photos/../photos/a.jpg") == {"photos/a.jpg": "clean/a.jpg"}

    def test_output_file_and_stream(self) -> None:
        assert plan("photos/a.jpg", output="x/y.png") == {"photos/a.jpg": "x/y.png"}
        assert plan("photos/a.jpg", output="-") == {"photos/a.jpg": "-"}
        assert plan("-", output="y.webp") == {"-": "y.webp"}
        assert plan("photos/a.jpg", output="folder.png/") == {"photos/a.jpg": "folder.png/a.jpg"}
        assert plan("photos/a.jpg", output="folder.gif/") == {"photos/a.jpg": "folder.gif/a.jpg"}

    def test_format_and_suffix(self) -> None:
        assert plan("photos/a.jpg", format="PNG", suffix="_dry") == {"photos/a.jpg": "clean/a_dry.png"}
        assert plan("photos/a.jpg", output="photos", suffix="_dry") == {"photos/a.jpg": "photos/a_dry.jpg"}

    def test_list_keeps_relative_folders(self, photos: Path) -> None:
        listed = ("photos/a.jpg\n", "\n", "photos/sub/a.jpg\n", f"{photos}/other/a.jpg\n")
        assert list(plan(listed=listed).values()) == ["clean/photos/a.jpg", "clean/photos/sub/a.jpg", "clean/a.jpg"]

    def test_output_inside_the_input_is_not_walked(self) -> None:
        Path("photos/clean").mkdir()
        Path("photos/clean/a.jpg").touch()
        assert "photos/clean/a.jpg" not in plan("photos", output="photos/clean")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    def test_a_pipe_in_a_folder_is_not_waited_for(self) -> None:
        os.mkfifo("photos/camera.jpg")
        Path("photos/gone.jpg").symlink_to("nowhere.jpg")
        names = plan("photos")
        assert "photos/camera.jpg" not in names
        assert "photos/gone.jpg" in names  # so that it fails by name
        assert plan("photos/camera.jpg") == {"photos/camera.jpg": "clean/camera.jpg"}

    def test_a_locked_folder_fails_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.scandir

        def scandir(path: str) -> object:
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        assert plan("photos") == {
            "photos/a.jpg": "clean/a.jpg",
            "photos/b.PNG": "clean/b.PNG",
            "photos/sub": "clean/sub",
        }

    def test_in_place(self) -> None:
        assert plan("photos/a.jpg", output=None, in_place=True) == {"photos/a.jpg": "photos/a.jpg"}

    @pytest.mark.parametrize(
        ("inputs", "options", "message"),
        [
            (["photos/a.jpg", "photos/sub/a.jpg"], {}, "would both write"),
            (["photos"], {"output": "photos"}, "would be overwritten"),
            (["photos/a.jpg"], {"output": "photos/a.jpg"}, "would be overwritten"),
            (["photos/a.jpg"], {"output": "photos/../photos"}, "would be overwritten"),
            (["none.jpg"], {}, "no such file"),
            (["photos/*.gif"], {}, "no picture matches"),
            (["photos/a.jpg"], {"output": None}, "say where"),
            (["photos/a.jpg"], {"in_place": True}, "leave out --output"),
            (["photos/a.jpg"], {"output": None, "in_place": True, "suffix": "x"}, "keeps names"),
            (["photos"], {"output": "-"}, "one picture"),
            (["photos"], {"output": "one.png"}, "one file"),
            (["photos"], {"output": "photos/notes.txt"}, "no folder"),
            (["photos/a.jpg"], {"output": "dry.gif"}, r"image/gif cannot be written; .*\.png"),
            (["-"], {}, "standard input needs"),
            (["photos/a.jpg"], {"output": "-", "compare": True}, "second file"),
            (["photos/a.jpg"], {"output": "a.png", "format": "JPEG"}, "contradict"),
            (["photos/a.jpg"], {"suffix": "/../x"}, "separator"),
        ],
    )
    def test_refusals(self, inputs: list[str], options: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            plan(*inputs, **options)  # type: ignore[arg-type]

    def test_two_formats_of_one_name(self) -> None:
        Path("photos/a.png").touch()
        with pytest.raises(UsageError, match="would both write"):
            plan("photos", format="WEBP")

    def test_compare_must_not_hit_another_output(self) -> None:
        Path("photos/a_compare.jpg").touch()
        with pytest.raises(UsageError, match="would both write"):
            plan("photos", compare=True)

    def test_an_empty_folder(self) -> None:
        Path("empty").mkdir()
        with pytest.raises(UsageError, match="no pictures found in empty; looked"):
            plan("empty")

    def test_what_is_left_alone_is_said(self) -> None:
        def left_alone(*inputs: str) -> str:
            return plan_jobs(inputs, (), OutputOptions("clean")).left_alone

        assert left_alone("other") == left_alone("photos/a.jpg") == ""
        for name in ("1.NEF", "sub/2.nef", ".3.nef", "README"):
            Path("photos", name).touch()
        assert left_alone("photos") == "2 .nef, 1 without an ending, 1 .txt"
        Path("photos/elsewhere").symlink_to(Path("other").resolve(), target_is_directory=True)
        assert left_alone("photos") == "2 .nef, 1 linked folders, 1 without an ending, 1 .txt"
        Path("photos/elsewhere").unlink()
        assert left_alone("photos/*") == "1 .nef, 1 without an ending, 1 .txt"
        for ending in "abc":
            Path(f"photos/x.{ending}").touch()
        assert left_alone("photos").endswith(", 2 others")
        Path("raw").mkdir()
        Path("raw/1.nef").touch()
        with pytest.raises(UsageError, match=r"no pictures found in raw; only 1 \.nef; looked for"):
            plan("raw")


def test_shards_together_are_the_whole() -> None:
    items = list(range(11))
    parts = [read_shard(f"{index}/4", {}).of(items) for index in (1, 2, 3, 4)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert read_shard("1/1", {}).of(items) == items
    slurm = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"}
    assert read_shard("auto", {**slurm, "SLURM_ARRAY_TASK_COUNT": "4"}) == Shard(2, 4)
    assert read_shard("auto/3", {"JOB_COMPLETION_INDEX": "0"}) == Shard(0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/4", "part 0 of 4 does not exist"),
        ("5/4", "part 5 of 4 does not exist"),
        ("1/0", "does not exist"),
        ("1", "not of the form"),
        ("a/b", "not of the form"),
        ("auto", "SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX is not set"),
    ],
)
def test_senseless_shards(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_shard(text, {})


def test_files_of_the_web_have_their_own_names_here(tmp_path: Path) -> None:
    pytest.importorskip("upath")
    pytest.importorskip("aiohttp")
    for name in ("rain photo.jpg", "ä.jpg", "#1.jpg", "photos/c d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"a photo")
    with serving(tmp_path) as web:
        addresses = [f"{web}/rain%20photo.jpg?token=a/b&c=d.png", f"{web}/%C3%A4.jpg", f"{web}/photos/*.jpg"]
        jobs = plan_jobs(addresses, [f"{web}/%231.jpg?size=[1]\n"], OutputOptions("clean", suffix="_dry")).jobs
    assert [job.target_name for job in jobs] == [f"clean/{name}_dry.jpg" for name in ("rain photo", "ä", "c d", "#1")]
    assert jobs[0].source_name == addresses[0]


@pytest.mark.parametrize("name", ["%2E%2E", "a%2Fb.jpg", "a%00.jpg"])
def test_what_is_no_name_stays_quoted(name: str) -> None:
    pytest.importorskip("upath")
    pytest.importorskip("aiohttp")
    here = name_here(open_path(f"http://127.0.0.1:9/photos/{name}"))
    assert here not in (".", "..")
    assert "/" not in here
    assert "\0" not in here
