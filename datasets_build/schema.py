"""What a row is: the column names and Arrow schemas of caption shards and data sets.

Every other module names a column by a constant of this file. Rows of different tables join by
`sample_id`, never by position. A split is derived from a row's ids (protocols.py), never stored.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1  # of caption shards
DATASET_SCHEMA_VERSION = 2  # 2: image_width, image_height; skeletons in full in dataset.json

# Both tables.
SAMPLE_ID = "sample_id"

# Caption shards: one row a (sample, prompt).
STATUS = "status"
REASON = "reason"
CAPTION = "caption"
CAPTION_RAW = "caption_raw"
PROMPT_ID = "prompt_id"
FRAME_INDICES = "frame_indices"
NUM_FRAMES = "num_frames"
DURATION_S = "duration_s"
PROMPT_TOKENS = "prompt_tokens"
GENERATED_TOKENS = "generated_tokens"
FINISH_REASON = "finish_reason"
MEAN_LOGPROB = "mean_logprob"
MODEL_ID = "model_id"
MODEL_REVISION = "model_revision"
VIDEO_SHA256 = "video_sha256"
REQUEST_KEY = "request_key"
ATTEMPTS = "attempts"
SOURCE = "source"

# Data sets: one row a sample.
DATASET = "dataset"
LABEL = "label"
ACTION_ID = "action_id"
SETUP_ID = "setup_id"
CAMERA_ID = "camera_id"
SUBJECT_ID = "subject_id"
REPETITION_ID = "repetition_id"
NUM_BODIES = "num_bodies"
IMAGE_WIDTH = "image_width"
IMAGE_HEIGHT = "image_height"
JOINTS = "joints"
CAPTIONS = "captions"
TEXT = "text"

# What tells a row of a data set from others; joints and captions apart.
ID_COLUMNS = (
    SAMPLE_ID,
    DATASET,
    LABEL,
    ACTION_ID,
    SETUP_ID,
    CAMERA_ID,
    SUBJECT_ID,
    REPETITION_ID,
    NUM_FRAMES,
    NUM_BODIES,
)

# The outcomes of one caption request: every planned request ends as exactly one row.
STATUS_SUCCESS = "success"
STATUS_TRUNCATED = "truncated"  # the token limit ended it
STATUS_REPETITION = "repetition"  # it ran into an n-gram loop
STATUS_EMPTY = "empty"
STATUS_DECODE_ERROR = "decode_error"
STATUS_TIMEOUT = "timeout"
STATUS_OOM = "oom"
STATUS_ERROR = "error"

# Where a caption came from.
SOURCE_VIDEO = "video"
SOURCE_RENDER = "render"
SOURCE_TEXT = "text"

CAPTION_SCHEMA = pa.schema(
    [
        pa.field(SAMPLE_ID, pa.string(), nullable=False),
        pa.field(STATUS, pa.string(), nullable=False),
        pa.field(REASON, pa.string()),
        pa.field(CAPTION, pa.string()),
        pa.field(CAPTION_RAW, pa.string()),
        pa.field(PROMPT_ID, pa.string(), nullable=False),
        pa.field(SOURCE, pa.string(), nullable=False),
        pa.field(FRAME_INDICES, pa.list_(pa.int32())),
        pa.field(NUM_FRAMES, pa.int32()),
        pa.field(DURATION_S, pa.float32()),
        pa.field(PROMPT_TOKENS, pa.int32()),
        pa.field(GENERATED_TOKENS, pa.int32()),
        pa.field(FINISH_REASON, pa.string()),
        pa.field(MEAN_LOGPROB, pa.float32()),
        pa.field(ATTEMPTS, pa.int32()),
        pa.field(MODEL_ID, pa.string()),
        pa.field(MODEL_REVISION, pa.string()),
        pa.field(VIDEO_SHA256, pa.string()),
        pa.field(REQUEST_KEY, pa.string(), nullable=False),
    ]
)

DATASET_SCHEMA = pa.schema(
    [
        pa.field(SAMPLE_ID, pa.string(), nullable=False),
        pa.field(DATASET, pa.string(), nullable=False),
        pa.field(LABEL, pa.int32(), nullable=False),  # 0-based
        pa.field(ACTION_ID, pa.int32(), nullable=False),  # 1-based, as in the file name
        pa.field(SETUP_ID, pa.int32()),
        pa.field(CAMERA_ID, pa.int32()),
        pa.field(SUBJECT_ID, pa.int32()),
        pa.field(REPETITION_ID, pa.int32()),
        pa.field(NUM_FRAMES, pa.int32(), nullable=False),
        pa.field(NUM_BODIES, pa.int32(), nullable=False),
        # The picture, in pixels, that 2-D joints were found in; null for 3-D ones.
        pa.field(IMAGE_WIDTH, pa.int32()),
        pa.field(IMAGE_HEIGHT, pa.int32()),
        # (M, T, V, C) float32 flattened in C order: M = num_bodies, T = num_frames, real length,
        # not padded; metres in the sensor's coordinates, or pixels and a score.
        pa.field(JOINTS, pa.list_(pa.float32()), nullable=False),
        pa.field(
            CAPTIONS,
            pa.list_(
                pa.struct(
                    [
                        pa.field(PROMPT_ID, pa.string()),
                        pa.field(TEXT, pa.string()),
                        pa.field(REQUEST_KEY, pa.string()),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)
