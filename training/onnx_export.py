"""The encoder of a run as an ONNX file that carries its classes and inputs, checked when written.

Letters: N samples, M bodies, T frames, V joints, C channels.

Input "skeleton" (N, M, T, V, C) float32 with any N, output "logits" (N, num_classes). What makes
the input of a recording is SkeletonModel.prepare; `hoc export --format inputs` writes such inputs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets_build.progress import Progress
from training.pretrained import SkeletonModel
from training.seeding import numpy_generator

INPUT, OUTPUT = "skeleton", "logits"
MAX_DIFFERENCE = 1e-4  # our choice: float32 sums in another order; models show 1e-6

_EXAMPLE_BATCH = 2  # torch.export takes a size of 1 for a constant
_CHECKED_BATCHES = (1, 3, 8)
_NUM_EXAMPLE_FRAMES = 40
_EXAMPLE_IMAGE = (640, 480)  # of made-up clips in pixels
_LONGEST_CAUSE = 400  # characters of torch's own sentence
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxSummary:
    """What was written, and how near it is to the model.

    Attributes:
        path: the file.
        num_bytes: its size.
        opset: version of ONNX's operators that it needs.
        num_nodes: operators in its graph.
        input_shape: of "skeleton", N first.
        num_classes: width of "logits".
        max_difference: largest difference of a logit, relative to the largest logit.
        batches: numbers of samples that were compared.
    """

    path: Path
    num_bytes: int
    opset: int
    num_nodes: int
    input_shape: tuple[str | int, ...]
    num_classes: int
    max_difference: float
    batches: tuple[int, ...]


def export_onnx(run: Path, path: Path, *, progress: Progress) -> OnnxSummary:
    """Write the model of a run; see `write_onnx`.

    Args:
        run: a run folder with a checkpoint.
        path: the .onnx to write.
        progress: told of the two stages.

    Raises:
        FileNotFoundError, ValueError: see SkeletonModel.from_run and `write_onnx`.
    """
    check_packages()
    return write_onnx(SkeletonModel.from_run(run), path, progress=progress)


def write_onnx(model: SkeletonModel, path: Path, *, progress: Progress) -> OnnxSummary:
    """Write a model as ONNX and compare it with onnxruntime's answers on seeded clips.

    The file stands under its name only when it passed. Its metadata are text: "classes" (a JSON
    list in label order), "stream", "orphan" (see training.streams), "view", "num_frames",
    "protocol" and "skeleton" (JSON).

    Args:
        model: on the CPU.
        path: a file of that name is replaced.
        progress: told of the two stages; the first takes most of the time, about a minute.

    Raises:
        ValueError: a package is missing, an operator of the model has no counterpart in ONNX, or
            the answers differ by more than MAX_DIFFERENCE.
    """
    check_packages()
    model.eval()
    progress.start("tracing the model", None, unit="models")
    program = _program(model)
    for key, value in _metadata(model).items():
        program.model.metadata_props[key] = value
    progress.start("comparing with onnxruntime", len(_CHECKED_BATCHES), unit="batches")
    temporary = path.with_name(path.name + ".tmp")
    try:
        program.save(temporary, external_data=False)
        difference = _difference(model, temporary, progress)
        if not difference <= MAX_DIFFERENCE:
            raise ValueError(
                f"onnxruntime's logits differ from the model's by {difference:.1e} of the largest "
                f"one (at most {MAX_DIFFERENCE:.0e} is taken), so {path} was not written; please "
                "report it with the versions that `hoc doctor` shows"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    progress.finish()
    return OnnxSummary(
        path=path,
        num_bytes=path.stat().st_size,
        opset=program.model.opset_imports[""],
        num_nodes=len(program.model.graph),
        input_shape=("N", *model.input_shape),
        num_classes=len(model.classes),
        max_difference=difference,
        batches=_CHECKED_BATCHES,
    )


def check_packages() -> None:
    """Refuse to begin where a package of the extra "onnx" is not installed.

    Raises:
        ValueError: says how to install it.
    """
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"an export to ONNX needs {', '.join(missing)}, not installed here; install with "
            "`pip install 'hocslm[onnx]'`"
        )


def example_clips(model: SkeletonModel, num: int) -> Tensor:
    """Prepared clips of seeded, moving bodies: (num, M, T, V, C)."""
    skeleton = model.skeleton
    is_flat = skeleton.joint_dims == 2
    scale, centre = (60.0, [320.0, 240.0]) if is_flat else (0.4, [0.0, 0.0, 3.0])
    clips = []
    for index in range(num):
        rng = numpy_generator(0, "onnx", index)
        shape = (skeleton.num_bodies, _NUM_EXAMPLE_FRAMES, skeleton.num_joints, skeleton.joint_dims)
        pose = rng.normal(0, scale, (1, 1, *shape[2:]))
        way = rng.normal(0, 0.05 * scale, shape).cumsum(axis=1)
        clip = np.ones((*shape[:3], skeleton.num_channels), np.float32)  # a score of 1, if any
        clip[..., : skeleton.joint_dims] = pose + way + centre
        clips.append(model.prepare(clip, image_size=_EXAMPLE_IMAGE if is_flat else None))
    return torch.stack(clips)


def _program(model: SkeletonModel) -> Any:
    """torch's ONNXProgram of the encoder.

    Raises:
        ValueError: an operator of the model cannot be exported; the message names it.
    """
    x = example_clips(model, _EXAMPLE_BATCH)
    shapes = ({0: torch.export.Dim("N", min=1)},)
    chatter = logging.getLogger("onnx_ir")  # a line for every empty list of the exporter's own
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            # Traced here: torch.onnx.export alone falls back to a constant N without a word.
            traced = torch.export.export(model.encoder, (x,), dynamic_shapes=shapes, strict=False)
            return torch.onnx.export(
                traced,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,  # once more, for the name
                verbose=False,
            )
    except RuntimeError as error:  # what both raise; its cause lies below
        raise ValueError(f"this model cannot be written as ONNX: {_cause(error)}") from error
    finally:
        chatter.setLevel(level)


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an exporter's error, without its suggestions."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).partition("Suggested fixes")[0]
    return f"{type(error).__name__}: {' '.join(said.split())[:_LONGEST_CAUSE]}"


def _metadata(model: SkeletonModel) -> dict[str, str]:
    inputs = model.inputs
    return {
        "classes": json.dumps(model.class_names, ensure_ascii=False),
        "stream": inputs.stream,
        "orphan": inputs.orphan,
        "view": inputs.view,
        "num_frames": str(inputs.num_frames),
        "protocol": inputs.protocol,
        "skeleton": json.dumps(model.skeleton.as_json()),
    }


def _difference(model: SkeletonModel, path: Path, progress: Progress) -> float:
    """The largest difference of onnxruntime's logits, relative to the largest logit of a batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    clips = example_clips(model, max(_CHECKED_BATCHES))
    for num in _CHECKED_BATCHES:
        with torch.no_grad():
            expected = model(clips[:num]).numpy()  # (N, num_classes)
        (given,) = session.run([OUTPUT], {INPUT: clips[:num].numpy()})
        share = np.abs(given - expected).max() / np.abs(expected).max()
        largest = float(np.maximum(largest, share))  # NaN stays
        progress.advance()
    return largest
