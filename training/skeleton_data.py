"""The samples of one split on the training device: a ragged store, and batches gathered from it.

Shapes: N samples of a batch, M bodies, T frames, V joints, C channels, R rows of the store (one a
body and frame), L tokens.

All joints of a split lie in one flat tensor (R, V, C); a batch is one gather, the view and the
stream follow on the device (transforms.py, streams.py). No sample is touched by Python once
training runs. A split that is larger than `resident_gib` lies in an unnamed memory-mapped file
instead, from which the rows of a batch are gathered on the host. A view takes all frames of the
clips, padded to the longest; where that would be too much at once, a batch is viewed in pieces.

Captions of samples that are not in the training split are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets_build.bodies import SecondBody
from datasets_build.joints import Skeleton
from training.config import DataConfig
from training.seeding import derived_seed, numpy_generator
from training.streams import apply_stream
from training.transforms import (
    NTU_DRAWS,
    ntu_view,
    sample_draws,
    sample_key,
    ucla_num_draws,
    ucla_view,
)

# One pass over the samples within an epoch differs from the next by this on the sample's key: an
# odd 64-bit number (the golden ratio's, as splitmix64 uses), so that keys of different passes never
# meet.
_PASS_STEP = np.int64(-7046029254386353131)

# Padded clips that a view takes at once, in bytes. Our choice: 372 clips of 300 frames, two bodies
# and 25 joints, so that batches of NTU and NW-UCLA stay whole.
_PADDED_BYTES = 1 << 26

# texts, max_tokens -> tokens (n, L) and mask (n, L): training.models.language_model's tokenize
Tokenize = Callable[[list[str], int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SkeletonBatch:
    """What a method sees.

    Attributes:
        x: (N, M, T, V, C) float32, one stream.
        label: (N,) int64, 0-based.
        sample_key: (N,) int64, the stable numbers of the samples.
        tokens: (N, L) int64, one caption a sample; None where no method needs any.
        token_mask: (N, L) bool, True at real tokens.
    """

    x: Tensor
    label: Tensor
    sample_key: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None


@dataclass(frozen=True)
class Picks:
    """Samples to take, in order, on the host and on the device.

    Attributes:
        index: (n,) positions in the store, host.
        key: (n,) sample keys, moved on by the pass, device.
        index_device: `index` on the device.
        caption: (n,) chosen captions, host; None without captions.
        caption_device: `caption` on the device.
    """

    index: np.ndarray
    key: Tensor
    index_device: Tensor
    caption: np.ndarray | None = None
    caption_device: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int) -> Picks:
        """The picks start .. stop - 1."""
        return Picks(
            self.index[start:stop],
            self.key[start:stop],
            self.index_device[start:stop],
            None if self.caption is None else self.caption[start:stop],
            None if self.caption_device is None else self.caption_device[start:stop],
        )


@dataclass(frozen=True)
class _Captions:
    """Tokenised captions: those of sample i are rows first[i] .. first[i + 1] - 1."""

    tokens: Tensor  # (num_captions, L), device
    mask: Tensor  # (num_captions, L), device
    num_tokens: np.ndarray  # (num_captions,), host
    first: np.ndarray  # (n + 1,), host


class SkeletonStore:
    """The samples of one split."""

    def __init__(
        self,
        rows: Tensor | np.memmap,
        *,
        sample_ids: Sequence[str],
        labels: np.ndarray,
        num_frames: np.ndarray,
        num_bodies: np.ndarray,
        skeleton: Skeleton,
        config: DataConfig,
        second_body: SecondBody,
        device: torch.device,
        texts: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Keep the rows where they are and put the rest on the device.

        Args:
            rows: (R, V, C) float32 joints (see coordinates.py), body by body and frame by
                frame, samples in order; a tensor goes to the device, a memory map stays on the
                host.
            sample_ids: n ids.
            labels: (n,) 0-based.
            num_frames: (n,) frames of each sample.
            num_bodies: (n,) bodies of each sample.
            skeleton: the layout.
            config: view, stream, frames, repeat.
            second_body: what stands for a body that was not seen.
            device: where batches are made.
            texts: the captions of each sample; training split only.
        """
        self.sample_ids = list(sample_ids)
        self.labels = labels.astype(np.int64)
        self.lengths = num_frames.astype(np.int64)
        self.bodies = num_bodies.astype(np.int64)
        self.skeleton = skeleton
        self.config = config
        self.device = device
        self.texts = texts
        self._copies_body = second_body == "copy"
        self._num_rows = self.lengths * self.bodies
        self._starts = np.concatenate([[0], np.cumsum(self._num_rows)])[:-1]
        self._keys = np.array([sample_key(name) for name in self.sample_ids], np.int64)
        self._mapped = rows if isinstance(rows, np.memmap) else None
        self._rows = None if isinstance(rows, np.memmap) else rows.to(device)
        table = np.stack([self._starts, self.lengths, self.bodies, self.labels], axis=1)
        self._table = torch.from_numpy(table).to(device)  # (n, 4)
        self._captions: _Captions | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def is_resident(self) -> bool:
        """Whether the joints lie on the training device."""
        return self._rows is not None

    @property
    def num_picks(self) -> int:
        """Samples of one training epoch, repeats counted."""
        return len(self) * self.config.repeat

    def tokenise(self, tokenize: Tokenize, max_tokens: int) -> None:
        """Turn the captions into tokens, once."""
        assert self.texts is not None, "the store was loaded without captions"
        flat = [text for texts in self.texts for text in texts]
        tokens, mask = tokenize(flat, max_tokens)  # (num_captions, L)
        counts = [len(texts) for texts in self.texts]
        self._captions = _Captions(
            tokens.to(self.device),
            mask.to(self.device).bool(),
            mask.sum(dim=1).cpu().numpy().astype(np.int64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def in_order(self) -> Picks:
        """Every sample once, in the order of the store; without captions."""
        return self.picks(np.arange(len(self)))

    def picks(self, index: np.ndarray) -> Picks:
        """Chosen samples, without captions."""
        index = index.astype(np.int64)
        return Picks(index, self._to_device(self._keys[index]), self._to_device(index))

    def shuffled(self, seed: int, epoch: int) -> Picks:
        """One training epoch: every sample `repeat` times in an order of (seed, epoch) alone.

        A sample with several captions gets one of them, drawn from (seed, epoch, pass, sample_id).
        """
        order = numpy_generator(seed, "order", epoch).permutation(self.num_picks)
        passes, index = np.divmod(order, len(self))
        with np.errstate(over="ignore"):
            keys = self._keys[index] + passes * _PASS_STEP
        picks = Picks(index, self._to_device(keys), self._to_device(index))
        if self._captions is None:
            return picks
        first = self._captions.first
        count = first[index + 1] - first[index]
        caption_seed = derived_seed(seed, "captions")
        draw = sample_draws(caption_seed, epoch, torch.from_numpy(keys), 1)[:, 0].double().numpy()
        chosen = first[index] + np.minimum((draw * count).astype(np.int64), count - 1)
        return Picks(picks.index, picks.key, picks.index_device, chosen, self._to_device(chosen))

    def batch(
        self, picks: Picks, *, seed: int = 0, epoch: int = 0, training: bool
    ) -> SkeletonBatch:
        """Gather samples, cut them to the view and make the stream.

        Args:
            picks: which samples.
            seed: the run's seed; used for training only.
            epoch: 0-based; used for training only.
            training: random view, or the fixed one of tests.
        """
        step = self._num_at_once(picks)
        views = [
            self._view(picks.part(start, start + step), seed=seed, epoch=epoch, training=training)
            for start in range(0, len(picks), step)
        ]
        x = torch.cat(views) if len(views) > 1 else views[0]  # (N, M, T, V, C)
        x = apply_stream(x, self.skeleton, self.config.stream)
        label = self._table[picks.index_device, 3]
        tokens = mask = None
        if picks.caption is not None and self._captions is not None:
            longest = int(self._captions.num_tokens[picks.caption].max())
            tokens = self._captions.tokens[picks.caption_device, :longest].long()  # (N, L)
            mask = self._captions.mask[picks.caption_device, :longest]  # (N, L)
        return SkeletonBatch(x, label, picks.key, tokens, mask)

    def _num_at_once(self, picks: Picks) -> int:
        """How many of the picks a view takes at once, padded to the longest of them all."""
        skeleton = self.skeleton
        frame_bytes = 4 * skeleton.num_bodies * skeleton.num_joints * skeleton.num_channels
        longest = int(self.lengths[picks.index].max())
        return max(1, _PADDED_BYTES // (frame_bytes * longest))

    def _view(self, picks: Picks, *, seed: int, epoch: int, training: bool) -> Tensor:
        """The picks cut to the view, (N, M, T, V, C)."""
        config = self.config
        table = self._table[picks.index_device]  # (N, 4)
        lengths = table[:, 1]
        x = self._padded(picks, table)  # (N, M, Tmax, V, C)
        if config.view == "ucla":
            draws = None
            if training:
                draws = sample_draws(seed, epoch, picks.key, ucla_num_draws(config.num_frames))
            return ucla_view(
                x,
                lengths,
                num_frames=config.num_frames,
                training=training,
                draws=draws,
                centre=self.skeleton.centre,
            )
        draws = sample_draws(seed, epoch, picks.key, NTU_DRAWS) if training else None
        return ntu_view(
            x,
            lengths,
            num_frames=config.num_frames,
            training=training,
            draws=draws,
            joint_dims=self.skeleton.joint_dims,
        )

    def _padded(self, picks: Picks, table: Tensor) -> Tensor:
        """Joints of the picks, (N, M, Tmax, V, C); frames behind a clip's end repeat its last.

        Unseen bodies are zeros; with the policy "copy" an unseen second one is a copy of the first.
        """
        num_bodies = self.skeleton.num_bodies
        longest = int(self.lengths[picks.index].max())
        if self._rows is not None:
            rows, starts = self._rows, table[:, 0]
        else:
            rows, starts = self._fetched(picks.index)
        lengths, bodies = table[:, 1], table[:, 2]
        frame = torch.arange(longest, device=self.device)
        frame = torch.minimum(frame[None], lengths[:, None] - 1)  # (N, Tmax)
        slot = torch.arange(num_bodies, device=self.device)[None]  # (1, M)
        is_seen = slot < bodies[:, None]  # (N, M)
        is_kept = is_seen | (slot == 1) if self._copies_body else is_seen
        body = slot * is_seen  # unseen bodies read the first
        at = starts[:, None] + body * lengths[:, None]  # (N, M)
        x = rows[at[:, :, None] + frame[:, None]]  # (N, M, Tmax, V, C)
        if num_bodies > 1:
            x *= is_kept[:, :, None, None, None]
        return x

    def _fetched(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """The rows of the picks from the memory map, on the device, and where each starts."""
        assert self._mapped is not None
        counts = self._num_rows[index]
        ends = np.cumsum(counts)
        starts = ends - counts
        at = np.repeat(self._starts[index] - starts, counts) + np.arange(ends[-1])
        rows = torch.from_numpy(self._mapped[at])
        return rows.to(self.device), self._to_device(starts)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def training_problems(
    store: SkeletonStore, class_names: Sequence[str], *, allow_empty_classes: bool
) -> list[str]:
    """What makes a split unfit for training, a sentence each; looked at before the first step."""
    problems = []
    num_classes = len(class_names)
    bad = np.flatnonzero((store.labels < 0) | (store.labels >= num_classes))
    if bad.size:
        first = int(bad[0])
        problems.append(
            f"sample {store.sample_ids[first]} has label {store.labels[first]}, but the data set "
            f"has {num_classes} classes and labels are 0-based; build the data set anew"
        )
    else:
        counts = np.bincount(store.labels, minlength=num_classes)
        empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if empty and not allow_empty_classes:
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            problems.append(
                f"{len(empty)} of {num_classes} classes have no training sample ({shown}); build "
                "the data set with --classes present, or set data.allow_empty_classes = true"
            )
    if store.texts is not None:
        mute = [n for n, texts in zip(store.sample_ids, store.texts, strict=True) if not texts]
        if mute:
            problems.append(
                f"{len(mute)} of {len(store)} training samples have no caption, for example "
                f"{mute[0]}; caption them with `hoc caption` and build the data set with these "
                "captions, or train with method.name = classify"
            )
    return problems
