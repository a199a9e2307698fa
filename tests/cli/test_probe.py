"""`hoc probe` as a person meets it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from cli.main import guarded
from cli.probe import probe

needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")


def hoc_probe(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command("probe")(guarded(probe))
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, ["--workers", "1", *words], env={"COLUMNS": "160"})


def write_video(path: Path, num_frames: int) -> Path:
    rng = np.random.default_rng(num_frames)
    with av.open(str(path), "w") as container:
        options = {"x264-params": "bframes=3:open-gop=1:scenecut=0:keyint=15:mbtree=0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for _ in range(num_frames):
            picture = rng.integers(0, 256, (32, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "[red] wave\n.avi", 40)
    write_video(folder / "one.mp4", 1)
    (folder / "page.mp4").write_text("<title>404</title>")
    return folder


def test_each_video_is_a_line_and_problems_are_no_failure(videos: Path, tmp_path: Path) -> None:
    table = tmp_path / "new/probe.parquet"
    result = hoc_probe(videos, "--out", table)
    assert result.exit_code == 0, result.output
    assert r"[red] wave\n" in result.output
    assert "page: not a readable video: InvalidDataError" in result.output
    rows = pq.read_table(table).to_pylist()
    assert [row["num_frames"] for row in rows] == [40, 1, None]
    assert [row["codec"] for row in rows] == ["h264", "h264", None]
    assert rows[0]["path"] == str(videos / "[red] wave\n.avi")


def test_json_holds_every_field(videos: Path) -> None:
    result = hoc_probe(videos, "--json", "--limit", "1")
    answer = json.loads(result.stdout)
    assert (answer["num_videos"], answer["audited_reader"]) == (1, None)
    (row,) = answer["videos"]
    assert (row["sample_id"], row["width"], row["height"]) == ("[red] wave\n", 64, 32)
    assert row["has_b_frames"] is True


def test_many_videos_are_summed_up(videos: Path, tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"clip-{number}.mp4").symlink_to(videos / "one.mp4")
    (tmp_path / "empty.mp4").touch()
    result = hoc_probe(tmp_path, "--cache", tmp_path / "probe.jsonl")
    assert "51 videos" in result.output
    assert "empty: the file is empty" in result.output
    assert "clip-49" not in result.output
    assert len((tmp_path / "probe.jsonl").read_text().splitlines()) == 51
    assert "50" in result.output


@needs_decord
def test_an_audit_names_the_wrong_frames(videos: Path, tmp_path: Path) -> None:
    arguments = (videos, "--audit-reader", "decord", "--num-frames", "4", "--num-tries", "2")
    result = hoc_probe(*arguments)
    assert r"[red] wave\n: decord returned frame 0 for 13 (2x), 13 for 26 (2x), " in result.output
    assert "decord returned wrong frames of 1 of 2 videos" in " ".join(result.output.split())
    rows = json.loads(hoc_probe(*arguments, "--json").stdout)["videos"]
    assert rows[0]["audit_wrong"][0] == {"asked": 13, "got": 0, "num_times": 2}
    assert rows[1]["audit_wrong"] == []
    assert rows[2]["audit_problem"] == rows[2]["problem"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--audit-reader", "imageio"), "choose from decord, opencv, torchcodec"),
        (("--out", "a.csv"), "ends in .parquet"),
    ],
)
def test_slips_are_told(arguments: tuple[str, ...], said: str, videos: Path) -> None:
    result = hoc_probe(videos, *arguments)
    assert result.exit_code == 2
    assert said in result.output
