"""The demo set: seeded clips of people in rooms, with the sentence that describes each one.

`perform` draws a clip (who, what, how, seen from where), `describe` says it, `render` draws its
frames and `write_demo_set` writes them as NTU files. Nothing is stored: a seed is a clip.

    synthetic_actions   the actions and the caption grammar
    synthetic_body      bone lengths, poses, kinematics
    synthetic_motion    the ten motions
    synthetic_view      cameras, clothes, rooms
    synthetic_room      walls, floor, chairs
    synthetic_render    pictures and videos
    synthetic_skeleton  Kinect's noise and the .skeleton text
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets_build.manifest import differing_parts, read_json, write_bytes_atomic, write_json
from datasets_build.ntu_names import NtuName
from datasets_build.progress import Progress, SilentProgress
from datasets_build.synthetic_actions import (
    ACTIONS,
    Speed,
    SyntheticAction,
    action_of_caption,
    describe,
    repetitions_of_caption,
    side_of_caption,
)
from datasets_build.synthetic_body import Side, actor_of_subject, place
from datasets_build.synthetic_motion import FPS, Manner
from datasets_build.synthetic_render import render, write_video
from datasets_build.synthetic_skeleton import skeleton_text
from datasets_build.synthetic_view import (
    CAMERA_ANGLES_RAD,
    Camera,
    Look,
    clothes_of_subject,
    draw_look,
    place_camera,
)

__all__ = [
    "ACTIONS",
    "DemoSetSummary",
    "Performance",
    "SyntheticAction",
    "action_of_caption",
    "describe",
    "perform",
    "render",
    "repetitions_of_caption",
    "side_of_caption",
    "write_demo_set",
]

# Part of the request of a written set: raise it when motions or pictures change.
GENERATOR_VERSION = 1
REQUEST_NAME, TRUTH_NAME, SYNONYMS_NAME = "demo-set.json", "truth.jsonl", "synonyms.csv"

# Factor on durations, our choice: neighbouring speeds differ by more than subjects do (7 %).
_PACES: dict[Speed | None, float] = {"quickly": 0.66, None: 1.0, "slowly": 1.6}


@dataclass(frozen=True)
class Performance:
    """One clip: what happens, who does it, and what the camera sees.

    Attributes:
        action_id: NTU's number, a key of ACTIONS.
        side: the acting hand or foot, the person's own; None where both or neither act.
        repetitions: how often; 1 for actions that are not counted.
        speed: "slowly", "quickly" or None for ordinary.
        direction: one of the action's directions, or None.
        bodies: (M, T, 25, 3) float32 metres in Kinect camera space at 30 fps, without noise.
        look: colours and room.
        camera: where the camera stands.
        seat: x, z and height of the chair's seat and the yaw of the sitter, world axes; or None.
    """

    action_id: int
    side: Side | None
    repetitions: int
    speed: Speed | None
    direction: str | None
    subject_id: int
    camera_id: int
    setup_id: int
    repetition_id: int
    bodies: NDArray[np.float32]
    look: Look
    camera: Camera
    seat: tuple[float, float, float, float] | None

    @property
    def sample_id(self) -> str:
        """The NTU name, SsssCcccPpppRrrrAaaa."""
        name = NtuName(
            self.setup_id, self.camera_id, self.subject_id, self.repetition_id, self.action_id
        )
        return str(name)

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.bodies.shape[1])


def perform(
    rng: np.random.Generator,
    *,
    action_id: int | None = None,
    subject_id: int | None = None,
    camera_id: int | None = None,
    setup_id: int | None = None,
    repetition_id: int = 1,
) -> Performance:
    """Draw one clip; whatever is not given is drawn too.

    The motion depends on the state of `rng` and on the ids but not on the camera: calls with equal
    generators and different camera_id see one performance from several sides. Drawn subjects and
    setups have numbers of 1000 and more, so they never meet those of the demo set.

    Raises:
        ValueError: no such action or camera.
    """
    seeds = rng.integers(2**63, size=3)
    pick = np.random.default_rng(seeds[0])
    drawn_action, drawn_camera = pick.integers(len(ACTIONS)), pick.integers(len(CAMERA_ANGLES_RAD))
    drawn_subject, drawn_setup = pick.integers(1000, 1_000_000, size=2)
    if action_id is None:
        action_id = sorted(ACTIONS)[int(drawn_action)]
    camera_id = int(drawn_camera) + 1 if camera_id is None else camera_id
    subject_id = int(drawn_subject) if subject_id is None else subject_id
    setup_id = int(drawn_setup) if setup_id is None else setup_id
    if action_id not in ACTIONS:
        raise ValueError(
            f"action_id {action_id} is not in the demo set; choose one of {sorted(ACTIONS)}"
        )
    if camera_id not in CAMERA_ANGLES_RAD:
        raise ValueError(f"camera_id {camera_id} does not exist; NTU has cameras 1, 2 and 3")

    action = ACTIONS[action_id]
    cast_ids = [subject_id, subject_id + 1_000_000][: action.num_people]
    cast = [actor_of_subject(i) for i in cast_ids]
    speed: Speed | None = (None, "slowly", "quickly")[int(pick.integers(3))]
    side: Side = "right" if pick.random() < cast[0].right_share else "left"
    level = ("slowly", None, "quickly").index(speed)
    most = action.max_repetitions[level] if action.max_repetitions else 1
    repetitions = int(pick.integers(action.min_repetitions, most + 1))
    way = int(pick.integers(len(action.directions))) if action.directions else None
    direction = None if way is None else action.directions[way]
    manner = Manner(
        side=side if action.has_side else None,
        repetitions=repetitions,
        pace=_PACES[speed] * pick.uniform(0.96, 1.04),
        direction=direction.removeprefix("to the ") if direction else None,
    )
    moved = action.move(cast, manner, np.random.default_rng(seeds[1]))

    stage = np.random.default_rng(seeds[2])
    yaw = stage.uniform(-np.pi / 12, np.pi / 12)
    x, z = stage.uniform(-0.15, 0.15, 2)
    world = place(moved.bodies, x, z, yaw)
    setup = np.random.default_rng([setup_id, 5])
    lens_m, fill = setup.uniform(0.9, 1.6), setup.uniform(0.80, 0.94)
    camera = place_camera(
        world,
        angle_rad=CAMERA_ANGLES_RAD[camera_id],
        height_m=lens_m,
        fill=fill,
        aside_m=stage.uniform(-0.2, 0.2),
    )
    is_dark = bool(setup.random() < 0.3)
    seat = None
    if moved.seat is not None:
        height_m, behind_m = moved.seat
        seat = (x + behind_m * np.sin(yaw), z + behind_m * np.cos(yaw), height_m, yaw)
    look = draw_look(
        np.random.default_rng([setup_id, camera_id, 9]),
        people=tuple(clothes_of_subject(i, bright=is_dark) for i in cast_ids),
        is_dark=is_dark,
        has_chair=seat is not None,
    )
    return Performance(
        action_id=action_id,
        side=manner.side,
        repetitions=repetitions,
        speed=speed,
        direction=direction,
        subject_id=subject_id,
        camera_id=camera_id,
        setup_id=setup_id,
        repetition_id=repetition_id,
        bodies=camera.from_world(world).astype(np.float32),
        look=look,
        camera=camera,
        seat=seat,
    )


# ---- the set on disk ----


@dataclass(frozen=True)
class DemoSetSummary:
    """What `write_demo_set` left behind.

    Attributes:
        folder: holds videos/, skeletons/, truth.jsonl and demo-set.json.
        num_clips: clips in the set.
        num_written: clips that were made now; the others were finished before.
        num_frames: frames of all clips.
        duration_s: how long it took.
    """

    folder: Path
    num_clips: int
    num_written: int
    num_frames: int
    duration_s: float


@dataclass(frozen=True)
class _Request:
    """Everything that the bytes of a set depend on."""

    num_subjects: int
    repetitions: int
    seed: int
    width: int
    height: int
    action_ids: tuple[int, ...]
    generator_version: int = GENERATOR_VERSION


def write_demo_set(
    folder: Path,
    *,
    num_subjects: int = 8,
    repetitions: int = 1,
    seed: int = 0,
    width: int = 480,
    height: int = 270,
    workers: int = 2,
    action_ids: tuple[int, ...] = tuple(sorted(ACTIONS)),
    progress: Progress | None = None,
) -> DemoSetSummary:
    """Write the demo set as NTU files: every subject does every action, seen by three cameras.

    videos/S001C001P001R001A009_rgb.avi, skeletons/S001C001P001R001A009.skeleton, and truth.jsonl
    with the caption and attributes of each clip, and synonyms.csv with each action's verb, both for
    scoring only. Subjects are 1, 2, ..., so NTU60's cross-subject split trains on 1, 2, 4, 5, 8 and
    tests on 3, 6, 7. The three cameras of a take see the same motion. The bytes depend on the
    arguments only, not on `workers`. A rerun skips finished clips.

    Args:
        folder: made if missing; must be empty or hold a set of the same arguments.
        num_subjects: 3 to 40 (fewer have no test subject).
        repetitions: takes of each subject and action.
        seed: of every motion; subjects and rooms stay the same.
        width: picture width in pixels, even.
        height: picture height in pixels, even.
        workers: processes; 1 works in this one.
        action_ids: which actions.
        progress: told about each clip.

    Raises:
        ValueError: an argument is out of range, or the folder holds something else.
    """
    started = time.monotonic()
    request = _Request(num_subjects, repetitions, seed, width, height, tuple(sorted(action_ids)))
    _check(request, workers)
    folder = Path(folder)
    _claim(folder, request)
    progress = progress or SilentProgress()
    takes = [
        (1 + (subject - 1) % 4, subject, repetition, action)
        for subject in range(1, num_subjects + 1)
        for repetition in range(1, repetitions + 1)
        for action in request.action_ids
    ]
    progress.start("synthetic clips", len(takes) * len(CAMERA_ANGLES_RAD), unit="clips")
    rows: list[dict[str, object]] = []
    num_written = 0
    if workers == 1:
        for take in takes:
            written, found = _write_take(folder, request, take)
            num_written, rows = num_written + written, rows + found
            progress.advance(len(found))
    else:
        # Spawned, not forked: the caller may hold threads (torch, decoders).
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_ctrl_c) as pool:
            futures = [pool.submit(_write_take, folder, request, take) for take in takes]
            try:
                for future in as_completed(futures):
                    written, found = future.result()
                    num_written, rows = num_written + written, rows + found
                    progress.advance(len(found))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    rows.sort(key=lambda row: str(row["sample_id"]))
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    write_bytes_atomic(folder / TRUTH_NAME, text.encode())
    verbs = [f"{i},{ACTIONS[i].verb}\n" for i in request.action_ids]
    write_bytes_atomic(folder / SYNONYMS_NAME, "".join(["action_id,text\n", *verbs]).encode())
    progress.finish()
    return DemoSetSummary(
        folder=folder,
        num_clips=len(rows),
        num_written=num_written,
        num_frames=sum(int(str(row["num_frames"])) for row in rows),
        duration_s=time.monotonic() - started,
    )


def _check(request: _Request, workers: int) -> None:
    problems = []
    if not 3 <= request.num_subjects <= 40:
        problems.append(
            f"num_subjects is {request.num_subjects}; give 3 to 40 (subject 3 is the first of the"
            " test split, and NTU60's split knows 40)"
        )
    if request.repetitions < 1 or workers < 1:
        problems.append(f"repetitions ({request.repetitions}) and workers ({workers}) must be >= 1")
    if request.width < 32 or request.height < 32 or request.width % 2 or request.height % 2:
        problems.append(
            f"the picture is {request.width}x{request.height}; both must be even and at least 32"
        )
    unknown = [i for i in request.action_ids if i not in ACTIONS]
    if unknown or not request.action_ids:
        problems.append(
            f"action_ids {unknown} are not in the demo set; choose from {list(ACTIONS)}"
        )
    if problems:
        raise ValueError("cannot write the demo set: " + "; ".join(problems))


def _claim(folder: Path, request: _Request) -> None:
    """Make the folders and the request file; refuse a folder of another request."""
    wanted = json.loads(json.dumps(asdict(request)))
    path = folder / REQUEST_NAME
    if path.exists():
        there = read_json(path, made_by="hoc demo")
        differing = differing_parts(wanted, there)
        if differing:
            raise ValueError(
                f"{folder} holds a demo set made with other values of {', '.join(differing)};"
                " choose another folder or delete this one"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no {REQUEST_NAME}; choose an empty folder for the"
            " demo set"
        )
    for name in ("videos", "skeletons"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _ignore_ctrl_c() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_take(
    folder: Path, request: _Request, take: tuple[int, int, int, int]
) -> tuple[int, list[dict[str, object]]]:
    """Write the clips of one take that are missing; (how many, the truth rows of all)."""
    setup_id, subject_id, repetition_id, action_id = take
    num_written, rows = 0, []
    for camera_id in CAMERA_ANGLES_RAD:
        clip = perform(
            np.random.default_rng([request.seed, *take]),
            action_id=action_id,
            subject_id=subject_id,
            camera_id=camera_id,
            setup_id=setup_id,
            repetition_id=repetition_id,
        )
        video = folder / "videos" / f"{clip.sample_id}_rgb.avi"
        skeleton = folder / "skeletons" / f"{clip.sample_id}.skeleton"
        size = {"width": request.width, "height": request.height}
        if not (video.exists() and skeleton.exists()):
            write_video(video, render(clip, range(clip.num_frames), **size), fps=FPS)
            rng = np.random.default_rng([request.seed, *take, camera_id])
            write_bytes_atomic(skeleton, skeleton_text(clip, rng, **size).encode("ascii"))
            num_written += 1
        rows.append(
            {
                "sample_id": clip.sample_id,
                "caption": describe(clip),
                "action_id": action_id,
                "side": clip.side,
                "repetitions": clip.repetitions if ACTIONS[action_id].max_repetitions else None,
                "speed": clip.speed,
                "direction": clip.direction,
                "num_people": ACTIONS[action_id].num_people,
                "num_frames": clip.num_frames,
            }
        )
    return num_written, rows
