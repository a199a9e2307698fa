"""From the coordinates of a data set to those of a store: relative to the clip or its picture.

Letters: M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

import numpy as np

from datasets_build.bodies import centred
from datasets_build.joints import Skeleton
from datasets_build.nwucla import published_coordinates
from datasets_build.protocols import NTU, NW_UCLA

MIN_SCORE = 0.01  # PYSKL's PreNormalize2D: joints that were found with no more count as unseen


def relative_joints(
    joints: np.ndarray,
    *,
    name: str,
    skeleton: Skeleton,
    family: str,
    view: str,
    image_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The joints of a clip as a store holds them; a score beside the coordinates stays as it is.

    - 2-D layouts: pixels become -1 .. 1 across the picture, (x - w/2) / (w/2) and (y - h/2) /
      (h/2), as in PYSKL's PreNormalize2D. Joints that were not seen (a score of at most MIN_SCORE;
      without scores: both coordinates 0) become 0.
    - 3-D, view "ntu": relative to the centre joint of body 1 in its first frame (bodies.centred).
    - NW-UCLA, view "ucla": the published numbers relative to the centre joint of frame 0,
      subtracted in double precision. Distances of 2-3 m rounded to float32 would miss CTR-GCN's
      inputs by more than 1e-6 after the view has stretched them.
    - other 3-D clips, view "ucla": unchanged; the view centres them.

    Args:
        joints: (M, T, V, C) as a data set holds them, finite.
        name: sample_id, for messages.
        skeleton: the layout.
        family: of the sample, see Protocol.dataset.
        view: "ntu" or "ucla".
        image_size: (width, height) of the picture in pixels; needed for 2-D layouts.

    Returns:
        (M, T, V, C) float32, a new array.

    Raises:
        ValueError: a 2-D clip without the size of its picture.
    """
    joints = np.asarray(joints, np.float32)
    coordinates = joints[..., : skeleton.joint_dims]
    if skeleton.joint_dims == 2:
        if image_size is None:
            raise ValueError(
                f"sample {name} has joints in pixels but no image size; build the data set anew "
                "from a source that gives the width and height of each picture"
            )
        half = np.array(image_size) / 2.0  # (w/2, h/2)
        is_seen: np.ndarray = (
            joints[..., 2] > MIN_SCORE if skeleton.has_score else (joints != 0).any(axis=-1)
        )  # (M, T, V)
        relative = (coordinates - half) / half * is_seen[..., None]
    elif view == "ntu":
        relative = centred(coordinates, centre=skeleton.centre, as_original=family == NTU)
    elif family == NW_UCLA:
        published = published_coordinates(coordinates)
        relative = published - published[0, 0, skeleton.centre]
    else:
        relative = coordinates.copy()
    if skeleton.has_score:
        relative = np.concatenate([relative, joints[..., skeleton.joint_dims :]], axis=-1)
    return relative.astype(np.float32, copy=False)
