"""`hoc push RUN`: a run's model goes to the Hugging Face Hub, private unless one says otherwise.

What is sent is the folder of training/pretrained.py: weights, config.json and card. Optimiser,
logs, scores and the paths of this machine stay here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from datasets_build.manifest import sha256_file
from datasets_build.progress import Progress, SilentProgress
from datasets_build.push import (
    NOT_TO_PUBLISH,
    PushConfig,
    PushSummary,
    check_repo_id,
    planned,
    upload,
)
from training.checkpoint import MODEL_FILE
from training.pretrained import SkeletonModel


def run(config: PushConfig, progress: Progress | None = None, *, api: Any = None) -> PushSummary:
    """Make the model of a run and upload it; the same call again goes on with an interrupted one.

    Args:
        config: `data` is the run folder; the rest as for data sets.
        progress: told when the upload begins; the Hub's library draws it itself.
        api: a huggingface_hub.HfApi; made where it is None.

    Raises:
        FileNotFoundError: not a run, or one without a checkpoint.
        ValueError: a file of it is damaged; the repository's name is none; it may not be public; no
            token, or one without the right to write.
        ConnectionError: the Hub is not reached or does not answer as it should.
    """
    check_repo_id(config.repo_id)
    model = SkeletonModel.from_run(config.data)
    if config.is_public:
        _refuse_to_publish(model, config)
    with tempfile.TemporaryDirectory(prefix="hoc-model-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, model_card_kwargs={"repo_id": config.repo_id})
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        summary = planned(config, files)
        if config.is_dry_run:
            return summary
        return upload(
            folder,
            config,
            summary,
            repo_type="model",
            message=config.message or _message(model, folder / MODEL_FILE),
            stale_files=[],
            progress=progress or SilentProgress(),
            api=api,
        )


def _message(model: SkeletonModel, weights: Path) -> str:
    record = model.record
    assert record is not None, "from_run fills it in"
    return (
        f"{record['dataset']}, {model.inputs.stream} stream: {record['epochs']} epochs, seed "
        f"{record['seed']}, weights {sha256_file(weights)[:12]}"
    )


def _refuse_to_publish(model: SkeletonModel, config: PushConfig) -> None:
    if model.family in NOT_TO_PUBLISH and not config.may_publish:
        raise ValueError(
            f"{config.data} was trained on {NOT_TO_PUBLISH[model.family]} samples, whose terms "
            "allow academic use only; push it without --public. --i-may-publish is for those whom "
            "the owners allow it, and for made-up samples that only borrow the names"
        )
