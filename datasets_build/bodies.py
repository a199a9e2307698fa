"""Denoising and selection of bodies as CTR-GCN's NTU preprocessing does it, and centring.

Source: the rules of CTR-GCN's data/ntu scripts (get_raw_skes_data, get_raw_denoised_data,
seq_transformation; from Microsoft's SGN). The defaults reproduce its arrays; two of its habits can
be switched off or on:
- a body that disappears and returns is moved together in time (`keep_gaps` puts that right);
- where one body was seen, the second is zeros in the 60-class set and a copy of the first in the
  120-class set.

Letters: M bodies, T frames, V joints (25), C coordinates (3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from datasets_build.ntu import NUM_JOINTS, BodyTrack, Recording
from datasets_build.settings import Settings
from datasets_build.sources import ClipError

NUM_ACTORS = 2
SecondBody = Literal["zeros", "copy"]
SecondBodyPolicy = Literal["original", "zeros", "copy"]


class BodySettings(Settings):
    """How bodies are chosen; defaults are CTR-GCN's constants.

    Attributes:
        max_noise_frames: a body seen in at most this many frames is noise (noise_len_thres).
        spread_ratio: a frame is noisy where the body is wider than this times its height
            (noise_spr_thres1).
        noisy_share: a body whose share of noisy frames reaches this is noise (noise_spr_thres2).
        keep_gaps: keep the time of a body that disappears and returns, and frames without anybody
            between the first and the last.
        second_body: what stands for the second body where one was seen; "original" is zeros for
            the 60 classes and a copy for the 120, as in CTR-GCN. It is applied when clips are
            loaded; the data set stores the bodies that were seen.
    """

    max_noise_frames: int = Field(default=11, ge=0)
    spread_ratio: float = Field(default=0.8, gt=0)
    noisy_share: float = Field(default=0.69754, gt=0)
    keep_gaps: bool = False
    second_body: SecondBodyPolicy = "original"


@dataclass(frozen=True)
class _Actor:
    """A body on the time line of the result: joints (T_b, V, C) at frames `positions` (T_b,)."""

    joints: np.ndarray
    positions: np.ndarray
    motion: float

    @property
    def start(self) -> int:
        return int(self.positions[0])

    @property
    def end(self) -> int:
        return int(self.positions[-1])


def select_bodies(recording: Recording, settings: BodySettings) -> np.ndarray:
    """The one or two main bodies of a recording.

    Args:
        recording: what the reader returned.
        settings: thresholds and `keep_gaps`.

    Returns:
        (M, T, 25, 3) float32 in the sensor's coordinates, zeros where a body is absent. M is 1 when
        one body was seen or left, else 2 (of which the second can be all zeros, where every other
        body continued the first). Frames without any body are dropped unless `keep_gaps`.

    Raises:
        ClipError: reason no_body_left or body_repeated.
    """
    joints = _selected(recording, settings)
    if not joints[0].any():
        raise ClipError("no_body_left", "no frame shows a body")
    return joints


def _selected(recording: Recording, settings: BodySettings) -> np.ndarray:
    actors, num_frames = _on_time_line(recording.bodies, keep_gaps=settings.keep_gaps)
    if len(actors) == 1:
        return _placed(actors, num_frames)  # one id: no denoising at all
    actors = [a for a in actors if len(a.joints) > settings.max_noise_frames]
    if not actors:
        raise ClipError(
            "no_body_left",
            f"none of {len(recording.bodies)} bodies is seen in more than "
            f"{settings.max_noise_frames} frames",
        )
    actors = _without_wide_bodies(actors, settings)
    if len(actors) == 1:
        joints = _placed(actors, num_frames)
    else:
        actors.sort(key=lambda actor: actor.motion, reverse=True)  # stable: ties keep file order
        joints = _merged(actors, num_frames)
    # The original asks whether a frame's numbers sum to 0, and so does this.
    is_seen = joints.transpose(1, 0, 2, 3).reshape(num_frames, -1).sum(axis=1) != 0  # (T,)
    if settings.keep_gaps:
        seen = np.flatnonzero(is_seen)
        return joints[:, seen[0] : seen[-1] + 1] if seen.size else joints
    return joints[:, is_seen]


def centred(joints: np.ndarray, *, centre: int = 1, as_original: bool = False) -> np.ndarray:
    """Coordinates relative to the middle of the spine of body 1 in its first frame.

    Args:
        joints: (M, T, V, C).
        centre: index of the joint that becomes the origin.
        as_original: put only those frames back to zero that CTR-GCN's seq_transformation does: of
            clips with two bodies, where the body's numbers sum to 0.

    Returns:
        (M, T, V, C), same dtype; a body's all-zero frames stay zero. A clip without any frame of
        body 1 is returned as it is.
    """
    first = next((t for t, frame in enumerate(joints[0]) if frame.any()), None)
    if first is None:
        return joints.copy()
    flat = joints.reshape(*joints.shape[:2], -1)  # (M, T, V*C)
    result: np.ndarray = flat - np.tile(joints[0, first, centre], joints.shape[2])
    if not as_original:
        result[~flat.any(axis=2)] = 0
    elif len(joints) == NUM_ACTORS:
        result[flat.sum(axis=2) == 0] = 0
    return result.reshape(joints.shape)  # (M, T, V, C)


def with_second_body(joints: np.ndarray, policy: SecondBody) -> np.ndarray:
    """Two bodies where one was seen: (1, T, V, C) becomes (2, T, V, C), others stay as they are."""
    if len(joints) >= NUM_ACTORS:
        return joints
    second = joints if policy == "copy" else np.zeros_like(joints)
    return np.concatenate([joints, second])  # (2, T, V, C)


def _on_time_line(tracks: tuple[BodyTrack, ...], *, keep_gaps: bool) -> tuple[list[_Actor], int]:
    """The bodies as actors, and the number of frames of the time line they share.

    The original's time line has only the frames that show a body, and a body that returns goes on
    right after its last frame.
    """
    if any((np.diff(track.frames) == 0).any() for track in tracks):
        raise ClipError("body_repeated", "a body id stands more than once in one frame")
    kept = np.unique(np.concatenate([track.frames for track in tracks]))  # frames with a body
    if keep_gaps:
        num_frames = int(kept[-1] - kept[0]) + 1
        positions = [track.frames - kept[0] for track in tracks]
    else:
        num_frames = len(kept)
        starts = [int(np.searchsorted(kept, track.frames[0])) for track in tracks]
        positions = [
            start + np.arange(len(track.frames))
            for start, track in zip(starts, tracks, strict=True)
        ]
    has_rivals = len(tracks) > 1
    actors = [
        _Actor(track.joints, where, _motion(track.joints) if has_rivals else 0.0)
        for track, where in zip(tracks, positions, strict=True)
    ]
    return actors, num_frames


def _motion(joints: np.ndarray) -> float:
    """Variance of all joint positions of all frames, summed over x, y, z."""
    return float(np.sum(np.var(joints.reshape(-1, joints.shape[-1]), axis=0)))


def _without_wide_bodies(actors: list[_Actor], settings: BodySettings) -> list[_Actor]:
    """Drop bodies that are too often wider than high (furniture), never the last one."""
    left = list(actors)
    for actor in actors:
        if len(left) == 1:
            break
        extent = actor.joints.max(axis=1) - actor.joints.min(axis=1)  # (T_b, C)
        is_noisy: np.ndarray = extent[:, 0] > settings.spread_ratio * extent[:, 1]
        if not is_noisy.any():
            continue
        at = next(i for i, other in enumerate(left) if other is actor)
        if is_noisy.sum() / len(is_noisy) >= settings.noisy_share:
            del left[at]
        elif not is_noisy.all():
            motion = min(actor.motion, _motion(actor.joints[~is_noisy]))
            left[at] = _Actor(actor.joints, actor.positions, motion)
    return left


def _merged(actors: list[_Actor], num_frames: int) -> np.ndarray:
    """Two slots (2, T, V, C): the most moving body, and others that do not overlap it in time."""
    slots = np.zeros((NUM_ACTORS, num_frames, NUM_JOINTS, 3), np.float32)
    slots[0, actors[0].positions] = actors[0].joints
    # Slot 2 starts with the interval (0, 0), as in the original: it then always reaches back to 0.
    intervals = [(actors[0].start, actors[0].end), (0, 0)]
    for actor in actors[1:]:
        for slot, (start, end) in enumerate(intervals):
            if min(end, actor.end) - max(start, actor.start) <= 0:
                slots[slot, actor.positions] = actor.joints
                intervals[slot] = (min(start, actor.start), max(end, actor.end))
                break
    return slots


def _placed(actors: list[_Actor], num_frames: int) -> np.ndarray:
    joints = np.zeros((1, num_frames, NUM_JOINTS, 3), np.float32)
    joints[0, actors[0].positions] = actors[0].joints
    return joints
