"""`hoc push`: a finished data set goes to the Hugging Face Hub, private unless one says otherwise.

Only what dataset.json lists and describes is uploaded. The Hub knows every file by its hash, so the
same command after an interruption sends what is still wanting, and a part file there that the data
set no longer has is removed (the card would load it as well). `upload` is also what
training/push_model.py sends the model of a run with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from datasets_build.build import LEFT_OUT_FILE
from datasets_build.dataset import DATASET_FILE, SkeletonDataset, open_dataset
from datasets_build.progress import Progress, SilentProgress
from datasets_build.protocol_files import FOLDER as PROTOCOLS_FOLDER
from datasets_build.protocols import NTU, NW_UCLA
from datasets_build.settings import Settings

CARD_FILE = "README.md"
MAIN_BRANCH = "main"
# Families whose owners forbid to pass the recordings on.
NOT_TO_PUBLISH = {NTU: "NTU RGB+D", NW_UCLA: "Northwestern-UCLA"}

_STALE_FILES = ["part-*.arrow", f"{PROTOCOLS_FOLDER}/*"]  # there, unless uploaded anew


class PushConfig(Settings):
    """What to upload and where to.

    Attributes:
        data: a data set's folder, or a run's where it is for training.push_model.
        repo_id: "owner/name" on the Hub; a name alone is the token's owner's.
        is_public: everybody may see it.
        may_publish: the owner of the recordings allows that; wanted for NTU and NW-UCLA samples.
        revision: the branch; made where it does not exist.
        message: of the commit; None says name, number of samples and fingerprint.
        is_dry_run: check and list, and send nothing.
    """

    data: Path
    repo_id: str
    is_public: bool = False
    may_publish: bool = False
    revision: str = MAIN_BRANCH
    message: str | None = None
    is_dry_run: bool = False


@dataclass(frozen=True)
class PushSummary:
    """What was uploaded, or would be.

    Attributes:
        repo_id: of the repository, with its owner where that is known.
        revision: the branch.
        is_private: whether only its owner sees it.
        files: size in bytes of each file, by its path in the data set.
        num_bytes: of them all.
        is_dry_run: whether nothing was sent.
        url: of the repository; None in a dry run.
        commit_url: of the last commit; None in a dry run.
    """

    repo_id: str
    revision: str
    is_private: bool
    files: dict[str, int]
    num_bytes: int
    is_dry_run: bool
    url: str | None = None
    commit_url: str | None = None


def run(config: PushConfig, progress: Progress | None = None, *, api: Any = None) -> PushSummary:
    """Check a data set and upload it; the same call again goes on with an interrupted one.

    Args:
        config: what and where to.
        progress: told of the checks; the Hub's library draws the upload itself.
        api: a huggingface_hub.HfApi; made here where it is None.

    Raises:
        FileNotFoundError: not a data set, or one whose build has not finished.
        ValueError: a file of it is not as recorded; the repository's name is none; it may not be
            public; no token, or one without the right to write.
        ConnectionError: the Hub is not reached or does not answer as it should.
    """
    progress = progress or SilentProgress()
    dataset = open_dataset(config.data)
    check_repo_id(config.repo_id)
    if config.is_public:
        _refuse_to_publish(dataset, config)
    _check_hashes(dataset, progress)
    files = _files(dataset)
    summary = planned(config, files)
    if config.is_dry_run:
        return summary
    return upload(
        dataset.folder,
        config,
        summary,
        repo_type="dataset",
        message=config.message or _message(dataset),
        stale_files=_STALE_FILES,
        progress=progress,
        api=api,
    )


def planned(config: PushConfig, files: dict[str, int]) -> PushSummary:
    """What a push of these files, path to bytes, will be."""
    return PushSummary(
        repo_id=config.repo_id,
        revision=config.revision,
        is_private=not config.is_public,
        files=files,
        num_bytes=sum(files.values()),
        is_dry_run=config.is_dry_run,
    )


def upload(
    folder: Path,
    config: PushConfig,
    summary: PushSummary,
    *,
    repo_type: str,
    message: str,
    stale_files: list[str],
    progress: Progress,
    api: Any,
) -> PushSummary:
    """Send the files of a summary to the Hub; the repository is made where it is new.

    Args:
        folder: holds the files.
        config: where to, and who may see it.
        summary: the files; what comes back adds the repository and the commit.
        repo_type: "dataset" or "model".
        message: of the commit.
        stale_files: patterns of files there that go away unless they are sent anew.
        progress: told once that it begins.
        api: a huggingface_hub.HfApi; made here where it is None.

    Raises:
        ValueError: it is there and everybody sees it; no token, or one without the right to write.
        ConnectionError: the Hub is not reached or does not answer as it should.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    where: dict[str, Any] = {"repo_type": repo_type}
    with _explained(config.repo_id):
        api.whoami()  # says at once that there is no token, or no network
        made = api.create_repo(config.repo_id, private=not config.is_public, exist_ok=True, **where)
        where["repo_id"] = made.repo_id
        # The wish for a private one says nothing where the repository was there before.
        is_private = bool(api.repo_info(**where).private)
        if not is_private and not config.is_public:
            raise ValueError(
                f"{made.repo_id} is there already and everybody sees it; nothing was sent. Give "
                "another name, make it private on the Hub, or say --public"
            )
        if config.revision != MAIN_BRANCH:
            api.create_branch(branch=config.revision, exist_ok=True, **where)
        progress.message(
            f"uploading {len(summary.files)} files, {summary.num_bytes / 1e6:,.1f} MB, to {made}"
        )
        commit = api.upload_folder(
            folder_path=folder,
            allow_patterns=list(summary.files),
            delete_patterns=stale_files,
            revision=config.revision,
            commit_message=message,
            **where,
        )
    return PushSummary(
        repo_id=made.repo_id,
        revision=config.revision,
        is_private=is_private,
        files=summary.files,
        num_bytes=summary.num_bytes,
        is_dry_run=False,
        url=str(made),
        commit_url=str(commit.commit_url),
    )


def _message(dataset: SkeletonDataset) -> str:
    return f"{dataset.name}: {dataset.num_rows} samples, fingerprint {dataset.fingerprint[:12]}"


def check_repo_id(repo_id: str) -> None:
    """Refuse what is not the name of a repository, before anything is asked of the Hub.

    Raises:
        ValueError: it is not.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is not the name of a repository; give OWNER/NAME of letters, digits, "
            '"-", "_" and ".", at most 96 in all'
        ) from error


def _refuse_to_publish(dataset: SkeletonDataset, config: PushConfig) -> None:
    if dataset.family in NOT_TO_PUBLISH and not config.may_publish:
        raise ValueError(
            f"{config.data} holds {NOT_TO_PUBLISH[dataset.family]} samples, whose terms forbid to "
            "pass them on; push it without --public. --i-may-publish is for those whom the owners "
            "allow it, and for made-up samples that only borrow the names"
        )


def _check_hashes(dataset: SkeletonDataset, progress: Progress) -> None:
    """Compare every file with the record.

    Raises:
        ValueError: lists what differs.
    """
    progress.start("checking hashes", None)
    problems = dataset.problems()
    progress.finish()
    if problems:
        raise ValueError(
            f"{dataset.folder} is not as it was built, so nothing was sent:\n  "
            + "\n  ".join(problems)
            + "\nBuild it anew with `hoc build-dataset`."
        )


def _files(dataset: SkeletonDataset) -> dict[str, int]:
    """Path within the data set and size of all that is uploaded, the parts first.

    Raises:
        FileNotFoundError: one is gone.
    """
    protocols = sorted(
        path.relative_to(dataset.folder).as_posix()
        for path in (dataset.folder / PROTOCOLS_FOLDER).glob("*")
        if path.suffix in (".toml", ".txt")
    )
    names = [shard.file for shard in dataset.shards] + protocols
    names += [LEFT_OUT_FILE, CARD_FILE, DATASET_FILE]
    missing = [name for name in names if not (dataset.folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{dataset.folder} lacks {', '.join(missing)}; build it anew with `hoc build-dataset`"
        )
    return {name: (dataset.folder / name).stat().st_size for name in names}


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what the Hub and its library raise into sentences."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    log_in = "`hf auth login` saves a token with the right to write; HF_TOKEN may hold one too"
    again = "The same command again goes on: what is there already is not sent twice."
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ValueError(f"there is no token for the Hugging Face Hub; {log_in}") from error
    except OfflineModeIsEnabled as error:
        raise ValueError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to reach the Hugging Face Hub; "
            "unset it, or look at what would be sent with --dry-run"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = " ".join((error.server_message or str(error)).split())
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            raise ValueError(f"the Hugging Face Hub does not know this token; {log_in}") from error
        if status in (401, 403, 404):
            raise ValueError(
                f"the Hugging Face Hub lets this token not write to {repo_id} (status {status}: "
                f"{said}); check the name, and that the token may write there. {log_in}"
            ) from error
        if status == 400:
            raise ValueError(
                f"the Hugging Face Hub refuses what was sent to {repo_id}: {said}"
            ) from error
        raise ConnectionError(
            f"the Hugging Face Hub answered with status {status} ({said}). {again}"
        ) from error
    # The library that moves the bytes raises plain RuntimeErrors.
    except (httpx2.HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        raise ConnectionError(
            f"the Hugging Face Hub is not reached ({type(error).__name__}: {error}). {again}"
        ) from error
