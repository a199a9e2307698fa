from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from captioning.inputs import Video
from captioning.plan import Clip, Plan, load_plan, request_key, save_plan, table_parts
from captioning.planning import Planner, make_plan, planned_size, recipe_of
from captioning.probe import PROBE_SCHEMA, Probe
from captioning.prompt_files import read_prompts

PROMPTS = read_prompts(("global", "changes"))


def inputs(num_good: int = 23, num_bad: int = 3) -> tuple[list[Video], list[Probe]]:
    videos = [Video(f"v{n:02d}", f"/videos/v{n:02d}.mp4") for n in range(num_good + num_bad)]
    probes = [
        Probe(None, None, 1000, f"sha-{n}", "h264", False, 5 + n * 7 % 11, 0, 25.0, 480, 640)
        if n < num_good
        else Probe("decode_error", "the file is empty", 0, f"sha-{n}")
        for n in range(num_good + num_bad)
    ]
    return videos, probes


def batches_of(plan: Plan) -> list[tuple[Clip, ...]]:
    return [plan.batch(number) for number in range(plan.num_batches)]


@pytest.fixture
def plan_of(numbered: ModuleType, tmp_path: Path) -> Any:
    def plan(videos: list[Video], probes: list[Probe], **changes: Any) -> Plan:
        config = numbered.config_for(Path("/videos"), tmp_path / "out", **changes)
        engine = numbered.ReadingEngine()
        planner = Planner(config, engine, PROMPTS)
        table = pa.Table.from_pylist([asdict(probe) for probe in probes], schema=PROBE_SCHEMA)
        recipe = recipe_of(config, planner, engine)
        return make_plan(
            videos, table, config, planner, recipe=recipe, prompts=PROMPTS, folder=tmp_path
        )

    return plan


def test_the_order_of_the_inputs_does_not_change_the_plan(plan_of: Any) -> None:
    videos, probes = inputs()
    there, back = plan_of(videos, probes), plan_of(videos[::-1], probes[::-1])
    assert there.table.equals(back.table)
    assert there.fingerprint == back.fingerprint


def test_every_clip_is_planned_once_and_no_batch_exceeds_the_budget(plan_of: Any) -> None:
    plan = plan_of(*inputs())
    batches = batches_of(plan)
    assert sorted(c.sample_id for batch in batches for c in batch) == [
        f"v{n:02d}" for n in range(26)
    ]
    readable = [batch for batch in batches if batch[0].problem is None]
    names = sum(len(prompt.prompt_id) for prompt in PROMPTS)
    for batch in readable:
        # 50 + the last frame are shared, each prompt costs its name and 10 new tokens.
        costs = [50 + clip.frame_indices[-1] + names + 2 * 10 for clip in batch]
        assert costs == sorted(costs)
        assert costs[-1] * len(batch) <= 250
    assert max(len(batch) for batch in readable) > 1
    # Clips with a problem stand apart, at the end.
    assert all(clip.problem for batch in batches[len(readable) :] for clip in batch)


def test_shards_are_runs_of_whole_batches(plan_of: Any) -> None:
    plan = plan_of(*inputs(), rows_per_shard=8)
    shards = [plan.batches_of(shard) for shard in range(plan.num_shards)]
    assert [batch for shard in shards for batch in shard] == list(range(plan.num_batches))
    rows = [2 * sum(len(plan.batch(batch)) for batch in shard) for shard in shards]
    assert rows == [2 * plan.num_clips_of(shard) for shard in range(plan.num_shards)]
    assert all(count >= 8 for count in rows[:-1])
    assert sum(rows) == 52


def test_a_saved_plan_reads_back_the_same(plan_of: Any, tmp_path: Path) -> None:
    videos, probes = inputs()
    odd = Video("odd", "/videos/a\nb \udcff.mp4")  # a name that is no UTF-8
    plan = plan_of([*videos, odd], [*probes, probes[0]])
    save_plan(plan, tmp_path, settings={})
    again = load_plan(tmp_path)
    assert batches_of(again) == batches_of(plan)
    assert odd.path in {clip.path for batch in batches_of(again) for clip in batch}
    assert (again.fingerprint, again.recipe_key) == (plan.fingerprint, plan.recipe_key)
    assert table_parts(again.table) == {name: plan.parts[name] for name in ("videos", "batches")}


def test_a_plan_of_no_readable_clip_has_only_rows_to_write_down(plan_of: Any) -> None:
    plan = plan_of(*inputs(0, 3))
    assert [clip.problem for batch in batches_of(plan) for clip in batch] == [
        "the file is empty"
    ] * 3


def test_frame_size_keeps_the_shape_within_the_pixels() -> None:
    # By hand: sqrt(1080 * 1920 / 50176) = 6.43; 1080 / 6.43 = 168 -> 5 * 32, 1920 / 6.43 = 298.7.
    assert planned_size(1080, 1920, max_pixels=224 * 224, multiple=32) == (160, 288)
    assert planned_size(1080, 1920, max_pixels=7296, multiple=32) == (64, 96)
    assert planned_size(31, 31, max_pixels=224 * 224, multiple=32) == (32, 32)  # not enlarged
    assert planned_size(33, 4000, max_pixels=224 * 224, multiple=32) == (32, 2464)
    with pytest.raises(ValueError, match="too narrow"):
        planned_size(2, 402, max_pixels=224 * 224, multiple=32)


def test_frame_pixels_come_from_the_setting_or_from_the_model(
    numbered: ModuleType, tmp_path: Path
) -> None:
    def pixels(**changes: Any) -> int:
        config = numbered.config_for(tmp_path, tmp_path, **changes)
        return Planner(config, numbered.ReadingEngine(), PROMPTS).max_pixels

    assert pixels(num_frames=16) == numbered.HEIGHT * numbered.WIDTH
    assert pixels(num_frames=2) == 8 * numbered.HEIGHT * numbered.WIDTH
    assert pixels(num_frames=2, max_pixels=2048) == 2048
    with pytest.raises(ValueError, match="smaller than one visual token of reading"):
        pixels(num_frames=200)


def test_a_clip_over_the_budget_is_named_with_what_to_change(plan_of: Any) -> None:
    with pytest.raises(ValueError, match=r"alone needs \d+ tokens .* raise batch_tokens"):
        plan_of(*inputs(), batch_tokens=64)


def test_a_picture_of_impossible_shape_becomes_a_row_with_a_reason(plan_of: Any) -> None:
    videos, probes = inputs(1, 0)
    thin = Probe(None, None, 1000, "sha", "h264", False, 9, 0, 25.0, 2, 4000)
    plan = plan_of([*videos, Video("thin", "/videos/thin.mp4")], [*probes, thin])
    clip = plan.batch(plan.num_batches - 1)[0]
    assert (clip.problem_status, clip.num_frames) == ("decode_error", 9)
    assert "too narrow" in str(clip.problem)


def test_another_recipe_is_refused_and_the_difference_named(plan_of: Any, tmp_path: Path) -> None:
    videos, probes = inputs()
    save_plan(plan_of(videos, probes), tmp_path, settings={})
    save_plan(plan_of(videos, probes, num_workers=5, decode_timeout_s=3.0), tmp_path, settings={})
    with pytest.raises(
        ValueError, match=r"different: batches, frames\.num_frames, resize\.max_pixels"
    ):
        save_plan(plan_of(videos, probes, num_frames=6), tmp_path, settings={})
    with pytest.raises(ValueError, match=r"\(different: batches, videos\)"):
        save_plan(plan_of(videos[1:], probes[1:]), tmp_path, settings={})


def test_request_keys_depend_on_clip_and_prompt_but_not_on_the_other_clips(plan_of: Any) -> None:
    videos, probes = inputs(6, 0)
    plan, fewer = plan_of(videos, probes), plan_of(videos[:2], probes[:2])
    clips = {clip.sample_id: clip for batch in batches_of(plan) for clip in batch}
    keys = {request_key(plan, clip, prompt) for clip in clips.values() for prompt in PROMPTS}
    assert len(keys) == 12
    assert request_key(fewer, clips["v00"], PROMPTS[0]) == request_key(
        plan, clips["v00"], PROMPTS[0]
    )
    other = plan_of(videos, probes, reader="decord")
    assert request_key(other, clips["v00"], PROMPTS[0]) not in keys
