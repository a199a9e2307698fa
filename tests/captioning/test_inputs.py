from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.inputs import Video, collect_videos, select_videos

ODD_NAMES = [
    b"two words.mp4", b"it's \"quoted\".mp4", b"new\nline.mp4", "Übung 動画.mp4".encode(),
    b"caf\xe9.mp4", b"[1] 100% #5.mp4", b" edge .mp4", b"back\\slash.mp4", b"tab\tcomma,.mp4",
]  # fmt: skip


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def ids_of(videos: list[Video]) -> list[str]:
    return [video.sample_id for video in videos]


def write_plan(folder: Path, videos: dict[str, str], *, finished: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    schema = pa.schema({"sample_id": pa.string(), "path": pa.string(), "height": pa.int32()})
    rows = [{"sample_id": k, "path": p, "height": 32} for k, p in videos.items()]
    with pa.ipc.new_file(str(folder / "plan.arrow"), schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema), max_chunksize=2)
    if finished:
        write_manifest(folder)


def write_manifest(folder: Path) -> None:
    value = {"config": {}, "fingerprint": "f", "parts": {}, "shards": [], "result": {}}
    (folder / "manifest.json").write_text(json.dumps(value))


def test_dataset_names_and_other_paths_give_the_sample_ids(tmp_path: Path) -> None:
    touch(tmp_path / "nturgb/S001C002P003R001A004_rgb.avi")
    touch(tmp_path / "nturgb/S001C002P003R001A005.avi")
    touch(tmp_path / "nturgb/S001C002P003R001A005_depth.avi")
    touch(tmp_path / "view_3/a01_s02_e00_v03.avi")
    touch(tmp_path / "wave/take one.MP4")
    touch(tmp_path / "wave/None.mp4")
    touch(tmp_path / "notes.txt")
    touch(tmp_path / "._wave.mp4")
    touch(tmp_path / ".hidden/wave.mp4")
    videos = collect_videos([str(tmp_path)])
    assert ids_of(videos) == [
        "S001C002P003R001A004",
        "S001C002P003R001A005",
        "a01_s02_e00_v03",
        "nturgb/S001C002P003R001A005_depth",
        "wave/None",
        "wave/take one",
    ]
    assert all(os.path.isabs(video.path) and os.path.isfile(video.path) for video in videos)


def test_globs_and_single_files_are_taken_and_one_file_counts_once(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "a/y.webm", "b/z.mkv"):
        touch(tmp_path / name)
    sources = [str(tmp_path / "*/x.*"), str(tmp_path / "b/z.mkv"), str(tmp_path / "b")]
    assert ids_of(collect_videos(sources)) == ["a/x", "z"]
    assert len(collect_videos([str(tmp_path)], limit=2)) == 2


def test_relative_sources_work_in_a_folder_with_glob_characters_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "[set 1]/a/x.mp4")
    monkeypatch.chdir(tmp_path / "[set 1]")
    expected = [Video("a/x", str(tmp_path / "[set 1]/a/x.mp4"))]
    assert collect_videos(["**/*.mp4"]) == collect_videos(["."]) == expected
    assert ids_of(collect_videos(["a/x.mp4"])) == ["x"]


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    touch(tmp_path / "1.mp4")
    video = touch(tmp_path / "[1].mp4")
    assert [v.path for v in collect_videos([str(video)])] == [str(video)]


def test_two_files_of_one_sample_id_are_refused_with_both_paths(tmp_path: Path) -> None:
    first = touch(tmp_path / "one/S001C002P003R001A004_rgb.avi")
    second = touch(tmp_path / "two/S001C002P003R001A004_rgb.avi")
    with pytest.raises(ValueError, match="both have the sample_id") as caught:
        collect_videos([str(tmp_path)])
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_missing_and_empty_folders_are_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist.*\.avi, .*list of paths.*\.csv"):
        collect_videos([str(tmp_path / "none")])
    with pytest.raises(ValueError, match=r"holds no video; looked for files ending in \.avi"):
        collect_videos([str(tmp_path)])
    with pytest.raises(ValueError, match=r"holds no video"):
        collect_videos([str(tmp_path / "*.mp4")])
    with pytest.raises(ValueError, match=r"is not a video or a list; .* lists in \.txt"):
        collect_videos([str(touch(tmp_path / "notes.md"))])


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "open/x.mp4")
    touch(tmp_path / "closed/y.mp4")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if "closed" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="closed"):
        collect_videos([str(tmp_path)])


def test_odd_names_are_found_and_their_ids_are_valid_utf8(tmp_path: Path) -> None:
    try:
        for name in ODD_NAMES:
            (tmp_path / os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    videos = collect_videos([str(tmp_path)])
    assert all(os.path.isfile(video.path) for video in videos)
    stems = (name.removesuffix(b".mp4").decode("utf-8", "backslashreplace") for name in ODD_NAMES)
    assert ids_of(videos) == sorted(stems)
    assert "caf\\xe9" in ids_of(videos)


def test_lists_and_folders_name_the_same_videos(tmp_path: Path) -> None:
    touch(tmp_path / "wave/one.mp4")
    touch(tmp_path / "S001C002P003R001A004_rgb.avi")
    folder = collect_videos([str(tmp_path)])
    (tmp_path / "list.txt").write_text("S001C002P003R001A004_rgb.avi\n./wave/../wave/one.mp4\n")
    assert collect_videos([str(tmp_path / "list.txt")]) == folder
    assert collect_videos([str(tmp_path / "list.txt"), str(tmp_path)]) == folder


def test_a_listed_path_outside_of_the_lists_folder_keeps_its_name_as_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/all.txt").write_text("/data/clips/a.mp4\n../b.mp4\nsub/c.mp4\ngone.xyz\n")
    assert collect_videos([str(tmp_path / "lists/all.txt")]) == [
        Video("../b", str(tmp_path / "b.mp4")),
        Video("/data/clips/a", "/data/clips/a.mp4"),
        Video("gone", str(tmp_path / "lists/gone.xyz")),
        Video("sub/c", str(tmp_path / "lists/sub/c.mp4")),
    ]


def test_one_listed_id_for_two_paths_is_refused_with_the_rows(tmp_path: Path) -> None:
    source = tmp_path / "list.csv"
    source.write_text("sample_id,path\nx,a.mp4\ny,b.mp4\nx,a.mp4\nx,c.mp4\n")
    with pytest.raises(ValueError, match="both have the sample_id 'x'") as caught:
        collect_videos([str(source)])
    assert f"a.mp4 ({source}, line 2)" in str(caught.value)
    assert f"c.mp4 ({source}, line 5)" in str(caught.value)
    source.write_text("sample_id,path\nx,a.mp4\ny,b.mp4\n")
    other = tmp_path / "other.jsonl"
    other.write_text('{"video": "c.mp4", "id": "y"}\n')
    with pytest.raises(ValueError, match=r"list\.csv, line 3\) and .*other\.jsonl, line 1\)"):
        collect_videos([str(source), str(other)], filters=["action=1"])


def test_the_videos_of_a_caption_run_are_taken_from_its_plan(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_plan(run, {"c": "/v/c.mp4", "a": "/v/S001C002P003R001A007_rgb.avi", "b": "/v/b.mp4"})
    expected = [
        Video("a", "/v/S001C002P003R001A007_rgb.avi"), Video("b", "/v/b.mp4"),
        Video("c", "/v/c.mp4"),
    ]  # fmt: skip
    assert collect_videos([str(run)]) == expected
    assert collect_videos([str(run / "manifest.json")]) == expected
    assert ids_of(collect_videos([str(touch(run / "x.mp4"))])) == ["x"]
    # The name of the file gives the ids where the sample_id does not.
    assert collect_videos([str(run)], filters=["action=7"]) == expected[:1]


def test_a_folder_is_a_caption_run_only_with_our_files(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4")
    (tmp_path / "manifest.json").write_text('{"license": "CC"}')
    assert ids_of(collect_videos([str(tmp_path)])) == ["x"]
    (tmp_path / "manifest.json").write_text("[not JSON")
    assert ids_of(collect_videos([str(tmp_path)])) == ["x"]
    with pytest.raises(ValueError, match=r"not the manifest of a caption run; give the manifest"):
        collect_videos([str(tmp_path / "manifest.json")])
    write_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"plan\.arrow is missing"):
        collect_videos([str(tmp_path)])
    (tmp_path / "plan.arrow").write_bytes(b"ARROW1 no more")
    with pytest.raises(ValueError, match=r"plan\.arrow is not the plan of a caption run"):
        collect_videos([str(tmp_path)])


def test_filters_use_the_columns_of_a_list_before_the_names(tmp_path: Path) -> None:
    source = tmp_path / "list.csv"
    source.write_text(
        "path,action_id,camera\n"
        "a.mp4,1,2.0\n"
        "b.mp4,2,2\n"
        "S001C003P003R001A001_rgb.avi,,2\n"
        "S001C003P003R001A002_rgb.avi,1,\n"
    )
    taken = collect_videos([str(source)], filters=["action=1", "camera=2"])
    assert ids_of(taken) == ["S001C003P003R001A001", "a"]
    taken = collect_videos([str(source)], filters=["action=1", "camera=3"])
    assert ids_of(taken) == ["S001C003P003R001A002"]


def test_a_pilot_is_balanced_over_class_names_in_a_column(tmp_path: Path) -> None:
    rows = [f"{label}{i}.mp4,{label}" for label in ("wave", "clap", "run") for i in range(9)]
    (tmp_path / "list.csv").write_text("\n".join(["path,action", *rows]))
    taken = ids_of(collect_videos([str(tmp_path / "list.csv")], pilot=6))
    assert sorted(sample_id[:-1] for sample_id in taken) == sorted(2 * ["wave", "clap", "run"])
    with pytest.raises(ValueError, match="present: clap, run, wave"):
        collect_videos([str(tmp_path / "list.csv")], filters=["action=1"])


def test_filters_come_before_the_pilot_and_the_limit_is_last(tmp_path: Path) -> None:
    for action in range(1, 7):
        for subject in range(1, 5):
            touch(tmp_path / f"S001C001P{subject:03d}R001A{action:03d}_rgb.avi")
    source = [str(tmp_path)]
    pilot = collect_videos(source, filters=["action=2-4"], pilot=6)
    assert sorted(video.sample_id[-1] for video in pilot) == list("223344")
    assert collect_videos(source, filters=["action=2-4"], pilot=6, limit=2) == pilot[:2]
    everything = collect_videos(source)
    assert select_videos(everything, filters=["action=2-4"], pilot=6, limit=None) == pilot


def test_a_slip_in_a_filter_is_told_before_anything_is_searched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'action'"):
        collect_videos([str(tmp_path / "none")], filters=["actoin=1"])


def test_a_column_name_without_a_table_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4")
    with pytest.raises(
        ValueError, match=r"column 'clip' is named, but no source is a table; .*csv"
    ):
        collect_videos([str(tmp_path)], path_column="clip")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_rows_of_parquet_are_read_in_bounded_time_and_memory(tmp_path: Path) -> None:
    num = 1_000_000
    names = [f"videos/batch{i % 997:04d}/clip_{i:08d}_of_the_million.mp4" for i in range(num)]
    ids = [f"clip{i:08d}" for i in range(num)]
    pq.write_table(pa.table({"path": names, "sample_id": ids}), tmp_path / "list.parquet")
    program = (
        "import sys, time\n"
        "from sys import getsizeof\n"
        "from captioning.inputs import collect_videos\n"
        "videos = collect_videos([sys.argv[1]])\n"
        # getrusage would tell the peak of the process that started this one
        "status = open('/proc/self/status').read()\n"
        "peak_kib = status.partition('VmHWM:')[2].split()[0]\n"
        "seconds = time.process_time()\n"
        # 8 bytes: the place in the list
        "size = sum(getsizeof(v) + getsizeof(v.path) + getsizeof(v.sample_id) + 8 for v in videos)"
        "\nprint(len(videos), size, peak_kib, seconds)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "list.parquet")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, num_bytes, peak_kib, seconds = done.stdout.split()
    assert int(count) == num
    overhead_mib = (int(peak_kib) * 1024 - int(num_bytes)) / 2**20
    assert overhead_mib < 200  # 140 measured, 64 of them the interpreter with Arrow
    assert float(seconds) < 20  # 5 measured
