"""One's own recordings: Parquet and .npz in every documented form, and what is wrong with them."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_build.generic import GenericSource, open_generic
from datasets_build.joints import NTU_25, Skeleton
from datasets_build.layouts import LayoutFile, read_layout
from datasets_build.sources import Clip, ClipError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-recordings.md"
V, C = 4, 3
STICK = Skeleton("stick", ("hip", "neck", "left hand", "right hand"), (0, 0, 1, 1), 0, num_bodies=2)
LAYOUT = LayoutFile(STICK, None)
NAMED = LayoutFile(STICK, ("wave", "bow"))

Columns = dict[str, Any]


def clips_of(*shapes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Random (M, T, V, C) float32 clips of (M, T)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1, (*shape, V, C)).astype(np.float32) for shape in shapes]


def columns_of(clips: list[np.ndarray]) -> Columns:
    """The columns of a Parquet file with flat joints."""
    return {
        "sample_id": [f"clip {number}" for number in range(len(clips))],
        "label": [number % 2 for number in range(len(clips))],
        "num_frames": [clip.shape[1] for clip in clips],
        "num_bodies": [clip.shape[0] for clip in clips],
        "joints": [clip.ravel() for clip in clips],
    }


def arrays_of(clips: list[np.ndarray]) -> Columns:
    """The arrays of an .npz with ragged joints."""
    columns = columns_of(clips)
    rows = np.concatenate([clip.reshape(-1, V, C) for clip in clips])
    return {
        **{name: np.array(columns[name]) for name in columns if name != "joints"},
        "joints": rows,
    }


@pytest.fixture
def opened() -> Iterator[Callable[..., GenericSource]]:
    """Opens files and closes them after the test."""
    with ExitStack() as stack:

        def open_it(path: Path, layout: LayoutFile = LAYOUT) -> GenericSource:
            return stack.enter_context(closing(open_generic(path, layout=layout)))

        yield open_it


@pytest.fixture
def parquet(tmp_path: Path, opened: Callable[..., GenericSource]) -> Callable[..., GenericSource]:
    def make(columns: Columns, layout: LayoutFile = LAYOUT, **options: Any) -> GenericSource:
        path = tmp_path / "lab.parquet"
        pq.write_table(pa.table(columns), path, **options)
        return opened(path, layout)

    return make


@pytest.fixture
def npz(tmp_path: Path, opened: Callable[..., GenericSource]) -> Callable[..., GenericSource]:
    def make(
        arrays: Columns, layout: LayoutFile = LAYOUT, *, save: Callable[..., None] = np.savez
    ) -> GenericSource:
        path = tmp_path / "lab.npz"
        save(path, **arrays)
        return opened(path, layout)

    return make


def all_clips(source: GenericSource) -> list[Clip]:
    return [source.clip(row.index) for row in source.rows()]


def assert_equal(found: list[Clip], clips: list[np.ndarray]) -> None:
    assert len(found) == len(clips)
    for clip, joints in zip(found, clips, strict=True):
        assert clip.joints.dtype == np.float32
        assert clip.joints.flags.c_contiguous
        assert np.array_equal(clip.joints, joints)


SHAPES = ((1, 5), (2, 1), (1, 40), (2, 7), (1, 3))


@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_flat_parquet_gives_back_every_clip_in_any_order(parquet, row_group_size):
    clips = clips_of(*SHAPES)
    source = parquet(columns_of(clips), row_group_size=row_group_size)
    assert_equal(all_clips(source), clips)
    for index in (4, 0, 3, 3, 1):
        assert np.array_equal(source.clip(index).joints, clips[index])
    assert (source.dataset, source.skeleton, source.splits) == ("generic", STICK, ())
    source.close()


def test_clips_beyond_one_batch_are_read_in_order_and_after_a_jump(parquet):
    clips = clips_of(*((1, 1 + number % 3) for number in range(90)))
    source = parquet(columns_of(clips), row_group_size=50)
    assert_equal(all_clips(source), clips)
    for index in (17, 40, 89, 12):
        assert np.array_equal(source.clip(index).joints, clips[index])


@pytest.mark.parametrize("numbers", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("form", ["flat", "[T][V][C]", "[M][T][V][C]", "fixed", "large"])
def test_nested_and_flat_lists_of_every_float_say_the_same(parquet, numbers, form):
    clips = [
        clip.astype(np.float16).astype(np.float32) for clip in clips_of((1, 5), (1, 2), (1, 9))
    ]
    columns = columns_of(clips)
    kind = numbers
    if form == "flat":
        values = [clip.ravel().tolist() for clip in clips]
        kind = pa.list_(kind)
    else:
        make = {"fixed": lambda k: pa.list_(k, C), "large": pa.large_list}.get(form, pa.list_)
        kind = pa.list_(pa.list_(make(kind)))
        values = [clip[0].tolist() for clip in clips]
        if form == "[M][T][V][C]":
            values, kind = [clip.tolist() for clip in clips], pa.list_(kind)
        del columns["num_frames"], columns["num_bodies"]
    if numbers == pa.float16():
        halves = np.float16
        values = [_as(value, halves) for value in values]
    columns["joints"] = pa.array(values, kind)
    assert_equal(all_clips(parquet(columns)), clips)


def _as(value: Any, kind: Any) -> Any:
    return [_as(item, kind) for item in value] if isinstance(value, list) else kind(value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("numbers", [np.float16, np.float32, np.float64, np.int16])
def test_ragged_and_padded_npz_say_the_same(npz, save, numbers):
    clips = [np.round(clip * 50).astype(np.float32) for clip in clips_of(*SHAPES)]
    arrays = arrays_of(clips)
    ragged = {**arrays, "joints": arrays["joints"].astype(numbers)}
    assert_equal(all_clips(npz(ragged, save=save)), clips)
    padded = np.full((len(clips), 2, 40, V, C), 77, numbers)  # what lies behind the end is not read
    for clip, room in zip(clips, padded, strict=True):
        room[: clip.shape[0], : clip.shape[1]] = clip
    source = npz({**arrays, "joints": padded}, save=save)
    assert_equal(all_clips(source), clips)
    assert np.array_equal(source.clip(1).joints, clips[1])  # a step back
    source.close()


def test_a_body_of_zeros_was_not_there(npz):
    (clip,) = clips_of((1, 5))
    padded = np.zeros((1, 2, 8, V, C), np.float32)
    padded[0, 1, :5] = clip[0]
    arrays = {"sample_id": np.array(["a"]), "label": np.array([0]), "num_frames": np.array([5])}
    assert_equal(all_clips(npz({**arrays, "joints": padded})), [clip])


def test_ids_of_parquet_and_npz_are_the_same(parquet, npz):
    clips = clips_of((1, 2), (1, 2))
    columns = columns_of(clips)
    more = {"subject_id": [7, None], "camera_id": [None, None], "repetition_id": [0, 2],
            "num_source_frames": [5, None], "image_width": [640, None], "image_height": [480, None],
            }  # fmt: skip
    kinds = dict.fromkeys(more, pa.int64())
    kinds["camera_id"] = pa.float64()  # what pandas makes of an empty column
    typed = {name: pa.array(values, kinds[name]) for name, values in more.items()}
    floats = {name: np.array(values, float) for name, values in more.items()}
    extra = {"note": ["not", "read"]}
    for source in (
        parquet({**columns, **typed, **extra}),
        npz({**arrays_of(clips), **floats, "note": np.zeros((3, 3))}),
    ):
        first, second = source.rows()
        assert (first.index, first.sample_id, first.source) == (0, "clip 0", source.path)
        assert (first.ids.dataset, first.ids.action_id, first.ids.sample_id) == (
            "generic",
            1,
            "clip 0",
        )
        assert (first.ids.subject_id, second.ids.subject_id) == (7, None)
        assert (first.ids.camera_id, first.ids.setup_id, first.ids.repetition_id) == (None, None, 0)
        assert second.ids.action_id == 2
        assert source.clip(0).num_source_frames == 5
        assert source.clip(0).image_size == (640, 480)
        assert (source.clip(1).num_source_frames, source.clip(1).image_size) == (None, None)


def test_classes_come_from_the_layout_the_names_or_the_numbers(parquet):
    columns = columns_of(clips_of((1, 2), (1, 2), (1, 2)))
    assert parquet(columns).class_names == ("class 0", "class 1")
    assert parquet(columns, NAMED).class_names == ("wave", "bow")
    del columns["label"]
    columns["class"] = pa.array(["wave", "bow", "wave"]).dictionary_encode()
    by_name = parquet(columns)
    assert by_name.class_names == ("bow", "wave")
    assert [row.ids.action_id for row in by_name.rows()] == [2, 1, 2]
    assert [row.ids.action_id for row in parquet(columns, NAMED).rows()] == [1, 2, 1]


def test_classes_of_an_npz_may_be_names(npz):
    arrays = arrays_of(clips_of((1, 2), (1, 2)))
    del arrays["label"]
    source = npz({**arrays, "class": np.array(["wave", "bow"])}, NAMED)
    assert [row.ids.action_id for row in source.rows()] == [1, 2]


def test_a_defect_leaves_out_its_sample_only_and_has_a_name(parquet):
    clips = clips_of(*((1, 4) for _ in range(8)))
    clips[1][0, 2, 3, 1] = np.nan
    clips[2][0, 0, 0, 0] = np.inf
    clips[3][0, 0, 0, 0] = -1001
    clips[4][:] = 0
    columns = columns_of(clips)
    columns["num_frames"][5] = 0
    columns["num_frames"][6] = 3
    source = parquet(columns)
    reasons = {}
    for index in range(8):
        try:
            assert_equal([source.clip(index)], [clips[index]])
        except ClipError as error:
            reasons[index] = error
    assert {index: error.reason for index, error in reasons.items()} == {
        1: "not_finite", 2: "not_finite", 3: "out_of_range", 4: "no_body", 5: "bad_count",
        6: "bad_shape",
    }  # fmt: skip
    assert "'right hand' of body 0 in frame 2" in reasons[1].detail
    assert "zeros" in reasons[1].detail
    assert "1001 m" in reasons[3].detail
    assert "48 numbers, expected 36 for (1, 3, 4, 3)" in reasons[6].detail


def test_pixels_may_be_larger_than_metres(parquet):
    flat = replace(STICK, name="flat", joint_dims=2, has_score=True)
    clips = clips_of((1, 2), (1, 2))
    clips[0][0, 0, 0, 0] = 99_999
    clips[1][0, 0, 0, 0] = 100_001
    size = {"image_width": [640] * 2, "image_height": [480] * 2}
    source = parquet({**columns_of(clips), **size}, LayoutFile(flat, None))
    assert source.clip(0).joints[0, 0, 0, 0] == 99_999
    with pytest.raises(ClipError, match=r"out_of_range.*100001 px"):
        source.clip(1)


def test_pixels_without_the_size_of_their_picture_are_a_defect(parquet):
    flat = LayoutFile(replace(STICK, name="flat", joint_dims=2, has_score=True), None)
    columns = columns_of(clips_of((1, 2), (1, 2)))
    source = parquet({**columns, "image_width": [640, None], "image_height": [480, None]}, flat)
    assert source.clip(0).image_size == (640, 480)
    for other, index in ((source, 1), (parquet(columns, flat), 0)):
        with pytest.raises(ClipError, match=r"no_image_size: .*add image_width and image_height"):
            other.clip(index)


def test_text_of_an_npz_that_holds_no_character_is_refused(npz):
    for num in (1, 2):
        codes = np.full((3, num), 65, "<u4")
        codes[1, 0] = 0x110000
        arrays = {**RAGGED, "sample_id": codes.view(f"<U{num}")[:, 0]}
        with pytest.raises(
            ValueError, match=r"lab\.npz: array 'sample_id' is not text .*0x110000, .*no character"
        ):
            npz(arrays)


def test_more_bodies_than_the_layout_has_are_not_dropped_silently(parquet):
    single = LayoutFile(replace(STICK, num_bodies=1), None)
    with pytest.raises(
        ClipError, match="too_many_bodies: 2 bodies; layout stick says num_bodies = 1"
    ):
        parquet(columns_of(clips_of((2, 3))), single).clip(0)


def test_nulls_and_ragged_nested_lists_are_defects_of_their_sample(parquet):
    good = clips_of((1, 2))[0]
    uneven = good[0].tolist()
    uneven[1] = uneven[1][:-1]
    holey = good[0].tolist()
    holey[1][2][0] = None
    four = good[0][:, :, :2].tolist()
    kind = pa.list_(pa.list_(pa.list_(pa.float32())))
    source = parquet(
        {
            "sample_id": list("abcdef"),
            "label": [0] * 6,
            "joints": pa.array([good[0].tolist(), None, uneven, holey, [], four], kind),
        }
    )
    assert_equal([source.clip(0)], [good])
    reasons = []
    for index in range(1, 6):
        with pytest.raises(ClipError) as caught:
            source.clip(index)
        reasons.append(caught.value.reason)
    assert reasons == ["bad_shape", "bad_shape", "not_finite", "bad_shape", "bad_shape"]


def test_nested_lists_that_contradict_their_count_are_a_defect(parquet):
    columns = {"sample_id": ["a"], "label": [0], "num_frames": [3],
               "joints": [clips_of((1, 2))[0].tolist()]}  # fmt: skip
    with pytest.raises(ClipError, match=re.escape("(1, 2, 4, 3), expected (1, 3, 4, 3)")):
        parquet(columns).clip(0)


FLAT = columns_of(clips_of((1, 2), (1, 3), (2, 1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample_id": None, "sampleid": ["a"] * 3}, "'sample_id'; did you mean 'sampleid'"),
        ({"joints": None}, "no column 'joints'"),
        ({"label": None}, "has no column to tell the action; give either 'label'"),
        ({"class": ["a", "b", "c"]}, "has label and class to tell the action"),
        ({"num_frames": None}, "no column 'num_frames'"),
        ({"label": [0, -1, 1]}, "row 1: '-1.0'; expected whole numbers 0 .. 9999"),
        ({"label": [0, 1.5, 1]}, "row 1: '1.5'"),
        ({"label": [0, None, 1]}, "row 1: 'nan'"),
        ({"label": ["0", "1", "2"]}, "column 'label' holds string; expected whole numbers"),
        ({"label": [0, 2**40, 1]}, "1 values of label cannot be used"),
        ({"subject_id": [0, -1, None]}, "values of subject_id cannot be used, row 1"),
        ({"subject_id": ["a", "b", "c"]}, "column 'subject_id' holds string"),
        ({"num_source_frames": [0, 1, 2]}, "row 0: '0.0'; expected whole numbers 1 .. "),
        ({"image_width": [640, 640, None]}, "row 0 has image_width 640 and image_height None"),
        ({"sample_id": [1, 2, 3]}, "column 'sample_id' holds int64; expected text"),
        ({"sample_id": ["a", "b/c", ""]}, "row 1: 'b/c', row 2: ''; they name files"),
        ({"sample_id": ["a", None, "x" * 201]}, "2 values of sample_id"),
        ({"sample_id": ["a", "..", "\x07"]}, "2 values of sample_id"),
        ({"joints": ["a", "b", "c"]}, "column 'joints' holds string; expected lists of numbers"),
        ({"joints": [[[1.0]], [[1.0]], [[1.0]]]}, "flat, [T][V][C] or [M][T][V][C]"),
        ({"joints": [["1"], ["2"], ["3"]]}, "expected lists of numbers"),
        ({"num_bodies": [1, 1, -2]}, "values of num_bodies cannot be used"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(parquet, changes, said):
    columns = {**FLAT, **changes}
    with pytest.raises(ValueError, match=re.escape(said)):
        parquet({name: values for name, values in columns.items() if values is not None})


def test_labels_and_names_that_are_no_class_name_their_row(parquet):
    columns = {**FLAT, "label": [0, 1, 2]}
    with pytest.raises(
        ValueError,
        match=re.escape("label cannot be used, row 2: '2.0'; expected whole numbers 0 .. 1"),
    ):
        parquet(columns, NAMED)
    del columns["label"]
    columns["class"] = ["wave", "bwo", "bow"]
    with pytest.raises(ValueError, match="row 1: 'bwo'; did you mean 'bow'"):
        parquet(columns, NAMED)
    columns["class"] = ["wave", None, "bow"]
    with pytest.raises(ValueError, match="1 values of class are no class name, row 1: ''"):
        parquet(columns)


def test_a_file_without_samples_or_of_another_kind_is_refused(parquet, tmp_path):
    with pytest.raises(ValueError, match="holds no sample"):
        parquet({name: pa.array(values)[:0] for name, values in FLAT.items()})
    for name in ("lab.parquet", "lab.npz", "lab.csv"):
        path = tmp_path / name
        path.write_bytes(b"PK no such thing" * 10)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            open_generic(path, layout=LAYOUT)
    with pytest.raises(FileNotFoundError):
        open_generic(tmp_path / "absent.parquet", layout=LAYOUT)


RAGGED = arrays_of(clips_of((1, 2), (1, 3), (2, 1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_frames": None}, "has no array 'num_frames'"),
        ({"num_frames": np.array([2, 3, 2])}, "has 7 rows, but num_bodies x num_frames makes 9"),
        ({"num_bodies": None}, "has 7 rows, but num_bodies x num_frames makes 6"),
        ({"label": np.array([0, 1])}, "array 'label' has 2 entries for 3 sample_ids"),
        ({"label": np.array([[0], [1], [1]])}, "array 'label' is (3, 1)"),
        ({"label": np.array([True, False, True])}, "array 'label' holds bool"),
        ({"sample_id": np.array([b"a", b"b", b"c"])}, "array 'sample_id' holds |S1; expected str"),
        ({"sample_id": np.array(["a", "b", "c" * 1001])}, "expected one number or short text"),
        ({"sample_id": np.array(["a", "b", None], object)}, "sample_id"),
        ({"sample_id": None}, "no column 'sample_id'"),
        ({"joints": np.zeros((7, V, 2))}, "is (7, 4, 2) of float64; layout stick expects"),
        ({"joints": np.zeros((7, V, C), complex)}, "of complex128"),
        ({"joints": np.zeros((2, 2, 3, V, C))}, "expected N = 3 samples"),
        ({"joints": np.zeros((7, V * C))}, "shape (N, M, T, 4, 3), or (R, 4, 3)"),
    ],
)
def test_an_npz_that_cannot_be_used_is_refused_with_a_sentence(npz, changes, said):
    arrays = {**RAGGED, **changes}
    with pytest.raises(ValueError, match=re.escape(said)):
        npz({name: values for name, values in arrays.items() if values is not None})


def test_a_count_beyond_the_padding_is_a_defect(npz):
    joints = np.ones((3, 1, 2, V, C))
    source = npz({**RAGGED, "joints": joints})
    assert source.clip(0).joints.shape == (1, 2, V, C)
    for index in (1, 2):  # three frames, two bodies
        with pytest.raises(ClipError, match="bad_count"):
            source.clip(index)


def test_names_of_a_benchmark_stay_generic(parquet):
    columns = {
        "sample_id": ["S001C001P001R001A009"],
        "label": [0],
        "joints": [np.ones((2, 25, 3)).tolist()],
    }
    (row,) = parquet(columns, LayoutFile(NTU_25, None)).rows()
    assert (row.ids.dataset, row.ids.action_id, row.ids.subject_id) == ("generic", 1, None)


def test_the_documented_program_writes_a_file_that_opens(tmp_path):
    """The page's code, with MediaPipe's answers made up: six frames, the second without a body."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.S)
    program = next(text for kind, text in blocks if kind == "python")
    (tmp_path / "mediapipe-33.toml").write_text(
        next(text for kind, text in blocks if kind == "toml")
    )
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (6, 33, 4)).astype(np.float32)
    seen[1] = 0

    def results_of(video: str):
        for points in seen:
            body = [SimpleNamespace(x=x, y=-y, z=z, visibility=v) for x, y, z, v in points.tolist()]
            yield SimpleNamespace(pose_world_landmarks=[body] if points.any() else [])

    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    names["results_of"] = results_of
    videos = [("videos/ann 1.mp4", "wave", 1), ("videos/bob 1.mp4", "sit down", 2)]
    names["write_recordings"](tmp_path / "lab.parquet", videos)
    source = open_generic(
        tmp_path / "lab.parquet", layout=read_layout(tmp_path / "mediapipe-33.toml")
    )
    assert [(row.sample_id, row.ids.action_id, row.ids.subject_id) for row in source.rows()] == [
        ("ann 1", 1, 1), ("bob 1", 2, 2),
    ]  # fmt: skip
    assert_equal(all_clips(source), [seen[None]] * 2)
    assert source.clip(0).num_source_frames == 6


def _parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(FLAT), buffer)
    return buffer.getvalue()


def _npz_bytes(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **RAGGED)
    return buffer.getvalue()


@settings(
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_mutated_files_give_clips_or_named_reasons(tmp_path, data):
    suffix, whole = data.draw(st.sampled_from(BASES))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path / f"mutated{suffix}"
    path.write_bytes(content)
    try:
        source = open_generic(path, layout=LAYOUT)
    except ValueError:
        return
    with closing(source):
        for row in source.rows():
            with suppress(ClipError):
                assert np.isfinite(source.clip(row.index).joints).all()


BASES = [
    (".parquet", _parquet_bytes()),
    (".npz", _npz_bytes(np.savez)),
    (".npz", _npz_bytes(np.savez_compressed)),
]


def test_a_damaged_row_group_costs_its_own_samples_only(parquet, opened):
    clips = clips_of(*((1, 50) for _ in range(6)))
    source = parquet(columns_of(clips), row_group_size=2, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(source.path).row_group(1).column(4)
    content = bytearray(source.path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 40] = bytes(40)
    source.path.write_bytes(content)
    again = opened(source.path)
    for index in (0, 1, 4, 5):
        assert np.array_equal(again.clip(index).joints, clips[index])
    for index in (2, 3):
        with pytest.raises(ClipError, match="cannot_read: row group 1"):
            again.clip(index)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_a_named_reason(npz, opened, save):
    source = npz(arrays_of(clips_of((1, 2_000), (1, 2_000))), save=save)
    with zipfile.ZipFile(source.path) as archive:
        offset = archive.getinfo("joints.npy").header_offset
    content = bytearray(source.path.read_bytes())
    content[offset + 150_000 : offset + 150_400] = bytes(400)
    source.path.write_bytes(content)
    again = opened(source.path)
    assert again.clip(0).joints.shape == (1, 2_000, V, C)
    with pytest.raises(ClipError, match="cannot_read"):
        again.clip(1)
