"""The weights of the epoch that scored best so far: RUN/best/model.safetensors.

One file says all: the epoch, its accuracy and the split that was looked at stand in its header, so
that it is whole or absent. Where that split is the test split, the number reached with these
weights was chosen by looking at test data, and everything made from them says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from datasets_build.manifest import sha256_file, write_bytes_atomic
from training.checkpoint import MODEL_FILE, SavedWeights

BEST = "best"


@dataclass(frozen=True)
class BestEpoch:
    """Which epoch was best.

    Attributes:
        path: the file with its weights.
        epoch: epochs trained by then.
        value: its top-1 accuracy.
        split: the split that it was measured on, "validation" or "test".
    """

    path: Path
    epoch: int
    value: float
    split: str

    @property
    def label(self) -> str:
        """What every result made with these weights has to say."""
        looked = "" if self.split == "validation" else f": chosen by looking at {self.split} data"
        return f"best epoch on the {self.split} split{looked}"


def save_best(
    run_folder: Path, weights: Mapping[str, Tensor], *, epoch: int, value: float, split: str
) -> bool:
    """Keep weights if they score better than those kept so far; equal ones stay with the earlier.

    Args:
        run_folder: the run.
        weights: what evaluation uses.
        epoch: epochs trained by now.
        value: top-1 accuracy of these weights.
        split: the split that it was measured on.

    Returns:
        Whether they were kept.

    Raises:
        OSError: they could not be written; those kept so far stay whole.
    """
    path = run_folder / BEST / MODEL_FILE
    if path.is_file() and read_best(run_folder).value >= value:
        return False
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    header = {"format": "pt", "epoch": str(epoch), "value": repr(float(value)), "split": split}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, save(tensors, metadata=header))
    return True


def forget_best(run_folder: Path, *, after: int) -> None:
    """Drop weights of a later epoch than `after`, from which a run goes on.

    They are of an epoch that this run has not trained: it repeats the epoch, or they were left by
    another recipe that was stopped before its first checkpoint. Where a repeated epoch ends with
    the same weights (loop.deterministic), nothing is lost: they were better than all before them,
    and will be again. Elsewhere it may score lower, and the best is then that of the epochs from
    here on: what was best before was replaced when these were kept.
    """
    path = run_folder / BEST / MODEL_FILE
    if path.is_file() and read_best(run_folder).epoch > after:
        path.unlink()


def read_best(run_folder: Path) -> BestEpoch:
    """Which epoch was best, without loading a tensor.

    Raises:
        FileNotFoundError: none was kept.
        ValueError: the file is damaged.
    """
    path = run_folder / BEST / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the run kept no best epoch; train it with "
            "loop.keep_best_epoch = true, or evaluate its last weights"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        return BestEpoch(path, int(header["epoch"]), float(header["value"]), header["split"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error


def load_best(run_folder: Path) -> tuple[BestEpoch, SavedWeights]:
    """The weights of the best epoch, and which one it was.

    Raises:
        FileNotFoundError, ValueError: see read_best.
    """
    while True:  # a run that trains may replace the file under our eyes
        best = read_best(run_folder)
        sha256 = sha256_file(best.path)
        tensors = load_file(best.path)
        if (read_best(run_folder), sha256_file(best.path)) == (best, sha256):
            return best, SavedWeights(tensors, sha256, best.epoch)
