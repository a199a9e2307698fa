"""The audit's rules that hold a caption against its skeleton, and the few numbers they need of it.

A clip of any length becomes one ClipMotion: how many bodies it shows, how far the trunk and each
limb go. The reach of a joint is the diagonal of the box that holds it in nine tenths of the frames,
so that single wild frames of the sensor do not count.

Letters: M bodies, T frames, V joints, C coordinates.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioning.audit_rows import CaptionRows, Rule, Verdicts
from datasets_build import schema
from datasets_build.bodies import BodySettings
from datasets_build.caption_words import acting_limbs
from datasets_build.dataset import joints_of_table, open_dataset
from datasets_build.formats import FORMATS, find_clips
from datasets_build.joints import Skeleton
from datasets_build.progress import Progress
from datasets_build.sources import ClipError, ClipFile, read_clip

LIMBS = ("left arm", "right arm", "left leg", "right leg")
_LIMB_ENDS = {"arm": ("wrist", "hand"), "leg": ("ankle", "foot")}
FILES_A_JOB = 64  # our choice: half a second of work, a few kB of result

# our choice: a second body in half of the frames takes part, one in a tenth or less passes by
TWO_BODIES_SHARE, ONE_BODY_SHARE = 0.5, 0.1
MIN_REACH_M = 0.15  # our choice: the sensor's noise alone makes up to 0.1 m
# our choice: below the first of the two the limbs differ too little to tell
FINE_RATIO, OTHER_SIDE_RATIO = 1.5, 2.0
OTHER_KIND_RATIO = 3.0  # our choice: arms balance a kick, legs walk while a hand waves
STILL_TRUNK_M, STILL_LIMB_M = 0.15, 0.2  # our choice: a swaying trunk, a hand that fidgets
MOVING_TRUNK_M, MOVING_LIMB_M = 0.6, 0.6  # our choice: two steps, a hand raised to the head
SEATED_TRUNK_M = 1.0  # our choice: sitting down or standing up moves the trunk by about 0.6 m

_TWO = re.compile(
    r"\b(?:two|both) (?:people|persons|men|women|individuals|figures|friends|boys|girls)\b"
    r"|\b(?:another|the other|a second|second) (?:person|man|woman|individual|one|figure)\b"
    r"|\b(?:man|woman|person) and (?:a|another|the other) (?:man|woman|person)\b"
    r"|\beach other\b|\bone another\b|\bsomeone else\b|\bcouple\b|\bpair of (?:people|men|women)\b"
)
_MORE = re.compile(r"\b(?:three|four|five|several|many|group of|some|few) (?:people|persons|men)\b")
_ONE = re.compile(
    r"\b(?:a|an|one|the|single) (?:\w+ )?(?:person|man|woman|individual|boy|girl|figure)\b"
    r"|\bsomeone\b"
)
_PLURAL = re.compile(r"\b(?:people|persons|men|women|individuals|couple)\b")
_STILL = re.compile(
    r"\b(?:stands?|standing|sits?|sitting|stays?|remains?|holds?|keeps?) (?:\w+ )?"
    r"(?:still|motionless|stationary)\b|\bmotionless\b|\bwithout moving\b|\bdo(?:es)? not move\b"
)
_SEATED = re.compile(r"\b(?:sits|sitting|seated|is sat)\b(?! down)")
_TRAVELS = re.compile(
    r"\b(?:walk|jog|jump)(?:s|ing|ed)?\b|\bhop(?:s|ping)?\b|\bmarch(?:es|ing)\b|\bpac(?:es|ing)\b"
    r"|\b(?:runs|running)\b(?! (?:an?|the|his|her|their|one|both|fingers|hands?|water)\b)"
)


@dataclass(frozen=True, slots=True)
class ClipMotion:
    """What the rules need of one clip.

    Attributes:
        second_body_share: frames that show a second body, over frames that show any.
        trunks_m: reach of each body's middle of the spine, metres, in the sensor's coordinates.
        limbs_m: reach of each body's limbs in the order of LIMBS, metres, relative to that joint.
    """

    second_body_share: float
    trunks_m: tuple[float, ...]
    limbs_m: tuple[tuple[float, ...], ...]


def measure(joints: np.ndarray, skeleton: Skeleton) -> ClipMotion | None:
    """The motion in a clip; None where no frame shows a body.

    Args:
        joints: (M, T, V, C) metres; a body's frame of zeros does not show it.
        skeleton: names of the V joints.
    """
    is_seen = (joints != 0).any(axis=(2, 3))  # (M, T)
    num_seen = int(is_seen.any(axis=0).sum())
    if not num_seen:
        return None
    joint_ids = [skeleton.centre, *(joint for limb in LIMBS for joint in _ends(limb, skeleton))]
    trunks, limbs = [], []
    for body, seen in zip(joints, is_seen, strict=True):
        if not seen.any():
            continue
        paths = body[seen][:, joint_ids]  # (T', 9, C)
        paths[:, 1:] -= paths[:, :1]
        low, high = np.quantile(paths, (0.05, 0.95), axis=0)  # (9, C) each
        reach = np.linalg.norm(high - low, axis=1).tolist()  # (9,)
        trunks.append(reach[0])
        limbs.append(tuple((reach[n] + reach[n + 1]) / 2 for n in (1, 3, 5, 7)))
    second = float(is_seen.all(axis=0).sum()) / num_seen if len(is_seen) > 1 else 0.0
    return ClipMotion(second, tuple(trunks), tuple(limbs))


def _ends(limb: str, skeleton: Skeleton) -> list[int]:
    """The two joints at the end of a limb."""
    side, kind = limb.split()
    return [skeleton.joints.index(f"{side} {name}") for name in _LIMB_ENDS[kind]]


def read_motions(
    sources: Sequence[Path], wanted: Collection[str], progress: Progress, *, num_workers: int
) -> dict[str, ClipMotion]:
    """The motion of the wanted samples; one that is not there or cannot be read is left out.

    Args:
        sources: data sets of `hoc build-dataset` (fast), or folders and zips of skeleton files.
        wanted: sample_ids.
        progress: is told the stage "skeletons".
        num_workers: processes that read skeleton files.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source holds no skeletons.
    """
    motions: dict[str, ClipMotion] = {}
    for source in sources:
        if (source / "dataset.json").is_file():
            _read_dataset(source, wanted, motions, progress)
        else:
            _read_files(source, wanted, motions, progress, num_workers)
    progress.finish()
    return motions


def _read_dataset(
    folder: Path, wanted: Collection[str], motions: dict[str, ClipMotion], progress: Progress
) -> None:
    dataset = open_dataset(folder)
    columns = [schema.SAMPLE_ID, schema.NUM_BODIES, schema.NUM_FRAMES, schema.JOINTS]
    progress.start("skeletons", dataset.num_rows, unit="clips")
    for table in dataset.tables(columns):
        names = table[schema.SAMPLE_ID].to_pylist()
        clips = joints_of_table(table, dataset.skeleton)
        for name, joints in zip(names, clips, strict=True):
            motion = measure(joints, dataset.skeleton) if name in wanted else None
            if motion is not None:
                motions.setdefault(name, motion)
        progress.advance(table.num_rows)


def _read_files(
    source: Path,
    wanted: Collection[str],
    motions: dict[str, ClipMotion],
    progress: Progress,
    num_workers: int,
) -> None:
    skeleton_format, files = find_clips([source], "auto")
    chosen = [file for file in files if skeleton_format.sample_id(file.name) in wanted]
    jobs = [
        (skeleton_format.name, chosen[start : start + FILES_A_JOB])
        for start in range(0, len(chosen), FILES_A_JOB)
    ]
    progress.start("skeletons", len(chosen), unit="clips")
    for found in _measured(jobs, min(num_workers, len(jobs))):
        for name, motion in found:
            if motion is not None:
                motions.setdefault(name, motion)
        progress.advance(len(found), num_failed=sum(motion is None for _, motion in found))


_Job = tuple[str, list[ClipFile]]
_Found = list[tuple[str, ClipMotion | None]]


def _measured(jobs: list[_Job], num_workers: int) -> Iterator[_Found]:
    if num_workers <= 1:
        yield from map(_measure_files, jobs)
        return
    # spawn: the caller may hold threads, which do not survive a fork
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, initializer=_ignore_ctrl_c) as pool:
        yield from pool.imap(_measure_files, jobs)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure_files(job: _Job) -> _Found:
    skeleton_format = FORMATS[job[0]]
    found: _Found = []
    for file in job[1]:
        try:
            joints = skeleton_format.read(read_clip(file), BodySettings()).joints
            motion = measure(joints, skeleton_format.skeleton)
        except ClipError:
            motion = None
        found.append((skeleton_format.sample_id(file.name) or file.stem, motion))
    return found


def num_people(text: str) -> int | None:
    """1 or 2 people that a text tells of; None for more, or where it does not say."""
    text = text.lower()
    if _MORE.search(text):
        return None
    if _TWO.search(text):
        return 2
    return 1 if _ONE.search(text) and not _PLURAL.search(text) else None


# Each check says what is wrong, "" where caption and skeleton agree, None where it cannot tell.


def _people(text: str, motion: ClipMotion) -> str | None:
    says, share = num_people(text), motion.second_body_share
    if says is None or ONE_BODY_SHARE < share < TWO_BODIES_SHARE:
        return None
    shows = 2 if share >= TWO_BODIES_SHARE else 1
    return "" if says == shows else f"tells of {says}, the skeletons show {shows}"


def _moving_limb(text: str, motion: ClipMotion) -> str | None:
    acting = acting_limbs(text)
    kinds = {kind for kind, _ in acting}
    if len(kinds) != 1 or len(motion.limbs_m) != 1:
        return None  # with two bodies nobody knows whose limb it is
    reach = dict(zip(LIMBS, motion.limbs_m[0], strict=True))
    (kind,) = kinds
    other_kind = "leg" if kind == "arm" else "arm"
    sides = {side for _, side in acting}
    of_kind = _compared(
        reach,
        [f"left {kind}", f"right {kind}"],
        [f"left {other_kind}", f"right {other_kind}"],
        ratio=OTHER_KIND_RATIO,
    )
    if of_kind or len(sides) != 1 or None in sides:
        return of_kind
    (side,) = sides
    other_side = "right" if side == "left" else "left"
    return _compared(reach, [f"{side} {kind}"], [f"{other_side} {kind}"], ratio=OTHER_SIDE_RATIO)


def _compared(
    reach: dict[str, float], said: list[str], others: list[str], *, ratio: float
) -> str | None:
    """Whether the limbs that are said to act, or others, go further."""
    ours, theirs = (max(reach[limb] for limb in limbs) for limbs in (said, others))
    if max(ours, theirs) < MIN_REACH_M:
        return None
    if theirs >= ratio * ours:
        furthest = max(others, key=lambda limb: reach[limb])
        return f"says {' or '.join(said)} ({ours:.2f} m), the {furthest} goes {theirs:.2f} m"
    return "" if ours >= FINE_RATIO * theirs else None


def _still_or_moving(text: str, motion: ClipMotion) -> str | None:
    text = text.lower()
    trunk = max(motion.trunks_m)
    limb = max(max(limbs) for limbs in motion.limbs_m)
    moves = f"the trunk moves {trunk:.2f} m, a limb {limb:.2f} m"
    if _TRAVELS.search(text):
        if trunk <= STILL_TRUNK_M and limb <= STILL_LIMB_M:
            return f"tells of steps or jumps, {moves}"
        return "" if trunk >= 2 * STILL_TRUNK_M or limb >= 2 * STILL_LIMB_M else None
    if _STILL.search(text):
        if trunk >= MOVING_TRUNK_M or limb >= MOVING_LIMB_M:
            return f"tells of standing or sitting still, {moves}"
        return "" if trunk <= STILL_TRUNK_M and limb <= STILL_LIMB_M else None
    if _SEATED.search(text):
        if trunk >= SEATED_TRUNK_M:
            return f"tells of sitting, {moves}"
        return "" if trunk <= SEATED_TRUNK_M / 2 else None
    return None


def _against_skeletons(
    check: Callable[[str, ClipMotion], str | None],
) -> Callable[[CaptionRows], Verdicts]:
    """The judge that makes a check of every captioned row whose skeleton is there."""

    def judge(rows: CaptionRows) -> Verdicts:
        judged = np.zeros(len(rows), bool)
        details = {}
        for row, (sample_id, text) in enumerate(zip(rows.sample_ids, rows.texts, strict=True)):
            motion = rows.motions.get(sample_id)
            said = check(text, motion) if text is not None and motion is not None else None
            judged[row] = said is not None
            if said:
                details[row] = said
        return Verdicts.of(judged, details)

    return judge


SKELETON_RULES = (
    Rule(
        "people",
        "tells of one person where the skeletons show two, or of two where they show one",
        _against_skeletons(_people),
        {"two_bodies_share": TWO_BODIES_SHARE, "one_body_share": ONE_BODY_SHARE},
        needs_skeletons=True,
    ),
    Rule(
        "moving-limb",
        "an arm or leg is said to act, but the one of the other side, or the other kind of limb, "
        "goes much further",
        _against_skeletons(_moving_limb),
        {
            "min_reach_m": MIN_REACH_M,
            "fine_ratio": FINE_RATIO,
            "other_side_ratio": OTHER_SIDE_RATIO,
            "other_kind_ratio": OTHER_KIND_RATIO,
        },
        needs_skeletons=True,
    ),
    Rule(
        "still-or-moving",
        "tells of standing still or sitting where the body moves far, or of steps and jumps where "
        "it does not",
        _against_skeletons(_still_or_moving),
        {
            "still_trunk_m": STILL_TRUNK_M,
            "still_limb_m": STILL_LIMB_M,
            "moving_trunk_m": MOVING_TRUNK_M,
            "moving_limb_m": MOVING_LIMB_M,
            "seated_trunk_m": SEATED_TRUNK_M,
        },
        needs_skeletons=True,
    ),
)
