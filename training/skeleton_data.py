"""The samples of one split on the training device: a ragged store, and batches gathered from it.

Shapes: N samples of a batch, M bodies, T frames, V joints, C channels, R rows of the store (one a
body and frame), L tokens.

All joints of a split lie in one flat tensor (R, V, C) on the device; the view gathers the frames it
needs from there and the stream follows (transforms.py, streams.py). No sample is touched by Python
once training runs, and nothing waits for the device. A split that is larger than `resident_gib`
lies in an unnamed memory-mapped file instead, from which the host makes the views; `batches` makes
the next one while the device works on the one before.

NTU's view reads two frames of a clip for each frame it gives. NW-UCLA's reads all frames of a clip,
padded to the longest; where that would be too much at once, a batch is viewed in pieces.

Captions of samples that are not in the training split are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

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
    StoredClips,
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

# Padded clips that NW-UCLA's view takes at once, in bytes. Our choice: 932 clips of 300 frames and
# 20 joints, so that its batches stay whole.
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
        token_mask: (N, L) bool, True at real tokens; on the host, where rows are packed.
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
        key: (n,) sample keys, moved on by the pass, host.
        index_device: `index` on the device.
        key_device: `key` on the device.
        caption: (n,) chosen captions, host; None without captions.
        caption_device: `caption` on the device.
    """

    index: np.ndarray
    key: np.ndarray
    index_device: Tensor
    key_device: Tensor
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
            self.key_device[start:stop],
            None if self.caption is None else self.caption[start:stop],
            None if self.caption_device is None else self.caption_device[start:stop],
        )


@dataclass(frozen=True)
class _Captions:
    """Tokenised captions: those of sample i are rows first[i] .. first[i + 1] - 1."""

    tokens: Tensor  # (num_captions, L) int32: half the memory of what batches hold; device
    mask: Tensor  # (num_captions, L), host
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
            device: where batches are needed.
            texts: the captions of each sample; training split only.

        Attributes:
            is_resident: whether the joints lie on the training device.
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
        self._starts = np.concatenate([[0], np.cumsum(self.lengths * self.bodies)])[:-1]
        self._keys = np.array([sample_key(name) for name in self.sample_ids], np.int64)
        self.is_resident = not isinstance(rows, np.memmap)
        # A tensor over a memory map reads from the file what is gathered from it, and no more.
        self._rows = torch.from_numpy(rows) if isinstance(rows, np.memmap) else rows.to(device)
        table = np.stack([self._starts, self.lengths, self.bodies], axis=1)
        self._table = torch.from_numpy(table).to(self._rows.device)  # (n, 3)
        self._labels = self._to_device(self.labels)
        self._captions: _Captions | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

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
            tokens.to(self.device, torch.int32),
            mask.cpu().bool(),
            mask.sum(dim=1).cpu().numpy().astype(np.int64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def in_order(self) -> Picks:
        """Every sample once, in the order of the store; without captions."""
        return self.picks(np.arange(len(self)))

    def picks(self, index: np.ndarray) -> Picks:
        """Chosen samples, without captions."""
        index = index.astype(np.int64)
        keys = self._keys[index]
        return Picks(index, keys, self._to_device(index), self._to_device(keys))

    def shuffled(self, seed: int, epoch: int) -> Picks:
        """One training epoch: every sample `repeat` times in an order of (seed, epoch) alone.

        A sample with several captions gets one of them, drawn from (seed, epoch, pass, sample_id).
        """
        order = numpy_generator(seed, "order", epoch).permutation(self.num_picks)
        passes, index = np.divmod(order, len(self))
        with np.errstate(over="ignore"):
            keys = self._keys[index] + passes * _PASS_STEP
        picks = Picks(index, keys, self._to_device(index), self._to_device(keys))
        if self._captions is None:
            return picks
        first = self._captions.first
        count = first[index + 1] - first[index]
        caption_seed = derived_seed(seed, "captions")
        draw = sample_draws(caption_seed, epoch, torch.from_numpy(keys), 1)[:, 0].double().numpy()
        chosen = first[index] + np.minimum((draw * count).astype(np.int64), count - 1)
        return replace(picks, caption=chosen, caption_device=self._to_device(chosen))

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
        return self._finished(picks, self._view(picks, seed=seed, epoch=epoch, training=training))

    def batches(
        self, parts: Iterable[Picks], *, seed: int = 0, epoch: int = 0, training: bool
    ) -> Iterator[SkeletonBatch]:
        """`batch` of each part in turn; off a memory map, the next one is made meanwhile.

        Args:
            parts: the picks of each batch.
            seed: see batch.
            epoch: see batch.
            training: see batch.
        """
        if self.is_resident:
            for picks in parts:
                yield self.batch(picks, seed=seed, epoch=epoch, training=training)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="hoc-views") as thread:
            ahead: tuple[Picks, Future[Tensor]] | None = None
            for picks in parts:
                view = thread.submit(self._view, picks, seed=seed, epoch=epoch, training=training)
                if ahead is not None:
                    yield self._finished(ahead[0], ahead[1].result())
                ahead = picks, view
            if ahead is not None:
                yield self._finished(ahead[0], ahead[1].result())

    def test_batches(self, batch_size: int) -> Iterator[SkeletonBatch]:
        """Every sample once, in the order of the store and the view of tests, in batches."""
        everything = self.in_order()
        starts = range(0, len(self), batch_size)
        parts = (everything.part(start, start + batch_size) for start in starts)
        return self.batches(parts, training=False)

    def _finished(self, picks: Picks, view: Tensor) -> SkeletonBatch:
        """The batch of a view (N, M, T, V, C): its stream, labels and captions, on the device."""
        x = view.to(self.device, non_blocking=True)
        x = apply_stream(x, self.skeleton, self.config.stream, orphan=self.config.orphan)
        tokens = mask = None
        if picks.caption is not None and self._captions is not None:
            longest = int(self._captions.num_tokens[picks.caption].max())
            tokens = self._captions.tokens[picks.caption_device, :longest].long()  # (N, L)
            mask = self._captions.mask[torch.from_numpy(picks.caption), :longest]  # (N, L)
        return SkeletonBatch(x, self._labels[picks.index_device], picks.key_device, tokens, mask)

    def _view(self, picks: Picks, *, seed: int, epoch: int, training: bool) -> Tensor:
        """The picks cut to the view, (N, M, T, V, C), where the rows are."""
        index, keys = picks.index_device, picks.key_device
        if not self.is_resident:
            index, keys = torch.from_numpy(picks.index), torch.from_numpy(picks.key)
        view = self._ntu_view if self.config.view == "ntu" else self._ucla_view
        num_draws = (
            NTU_DRAWS if self.config.view == "ntu" else ucla_num_draws(self.config.num_frames)
        )
        draws = sample_draws(seed, epoch, keys, num_draws) if training else None
        x = view(picks, self._table[index], draws)  # (N, M, T, V, C)
        if not self.is_resident and self.device.type == "cuda":
            x = x.pin_memory()  # the copy to the device then waits for nothing
        return x

    def _ntu_view(self, picks: Picks, table: Tensor, draws: Tensor | None) -> Tensor:
        """See ntu_view.

        Unseen bodies are zeros; with the policy "copy" an unseen second one is a copy of the first.
        """
        skeleton = self.skeleton
        start, lengths, bodies = table.unbind(1)  # (N,) each
        slot = torch.arange(skeleton.num_bodies, device=table.device)[None]  # (1, M)
        is_seen = slot < bodies[:, None]  # (N, M)
        # Unseen bodies read the first.
        clips = StoredClips(self._rows, start[:, None] + slot * is_seen * lengths[:, None])
        x = ntu_view(
            clips,
            lengths,
            num_frames=self.config.num_frames,
            training=draws is not None,
            draws=draws,
            joint_dims=skeleton.joint_dims,
        )  # (N, M, T, V, C)
        if skeleton.num_bodies > 1:
            is_kept = is_seen | (slot == 1) if self._copies_body else is_seen
            x *= is_kept[:, :, None, None, None]
        return x

    def _ucla_view(self, picks: Picks, table: Tensor, draws: Tensor | None) -> Tensor:
        """See ucla_view; in pieces where all clips padded to the longest would be too much."""
        skeleton = self.skeleton
        frame_bytes = 4 * skeleton.num_joints * skeleton.num_channels
        longest = int(self.lengths[picks.index].max())
        at_once = max(1, _PADDED_BYTES // (frame_bytes * longest))
        views = []
        for at in range(0, len(picks), at_once):
            start, lengths, _ = table[at : at + at_once].unbind(1)  # (N,) each
            frame = torch.arange(longest, device=table.device)
            frame = torch.minimum(frame, lengths[:, None] - 1)  # (N, Tmax)
            view = ucla_view(
                StoredClips(self._rows, start[:, None]).frames(frame),  # (N, 1, Tmax, V, 3)
                lengths,
                num_frames=self.config.num_frames,
                training=draws is not None,
                draws=None if draws is None else draws[at : at + at_once],
                centre=skeleton.centre,
            )
            views.append(view)
        return torch.cat(views) if len(views) > 1 else views[0]  # (N, 1, T, V, 3)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def training_problems(
    store: SkeletonStore,
    class_names: Sequence[str],
    *,
    allow_empty_classes: bool,
    unseen: Collection[int] = (),
) -> list[str]:
    """What makes a split unfit for training, a sentence each; looked at before the first step.

    Args:
        store: the training split.
        class_names: of the data set, in label order.
        allow_empty_classes: no class needs a sample.
        unseen: labels of the classes that are left out on purpose.
    """
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
        empty = [
            name
            for label, name in enumerate(class_names)
            if not counts[label] and label not in unseen
        ]
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
