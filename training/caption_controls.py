"""Which captions a run is shown: its own, or those of an honest control (method.captions).

The controls tell whether what captions say carries a gain, or merely that there are some:

    shuffled           each sample gets the captions of a sample drawn among all of training
    shuffled-in-class  ... among those of its class: right about the action, wrong about the clip
    class-name         the name of the class and no more

Shuffles are permutations, so that each caption is read as often as before. They follow from the
run's seed and the sample ids, not from the order of the samples. A sample may draw itself, and with
K classes about one in K of the shuffled captions still tells the right action. The control without
captions is lambda_gen = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.config import Captions
from training.seeding import numpy_generator
from training.skeleton_data import SkeletonStore


def shown_captions(
    kind: Captions, store: SkeletonStore, *, class_names: Sequence[str], seed: int
) -> list[list[str]]:
    """The captions that each sample of a store is trained with.

    Args:
        kind: see above; "own" changes nothing.
        store: of the training split, with captions.
        class_names: in label order.
        seed: the run's.

    Raises:
        ValueError: a control changes no caption, and so would be no control.
    """
    assert store.texts is not None, "the store was loaded without captions"
    own = [list(texts) for texts in store.texts]
    if kind == "own":
        return own
    if kind == "class-name":
        shown = [[class_names[label]] for label in store.labels]
    else:
        groups = np.zeros_like(store.labels) if kind == "shuffled" else store.labels
        givers = _permuted(store.sample_ids, groups, seed=seed)
        shown = [own[giver] for giver in givers]
    if shown == own:
        raise ValueError(
            f'method.captions = "{kind}" changes no caption of these {len(own)} training samples, '
            "so that the run would be the one with their own; give captions that differ from "
            "sample to sample, or leave this control out"
        )
    return shown


def _permuted(sample_ids: Sequence[str], groups: np.ndarray, *, seed: int) -> np.ndarray:
    """For each sample the position of another of its group; each position occurs once."""
    givers = np.arange(len(sample_ids))
    by_name = np.argsort(np.array(sample_ids))
    for group in np.unique(groups):
        members = by_name[groups[by_name] == group]
        rng = numpy_generator(seed, "shuffled captions", int(group))
        givers[members] = rng.permutation(members)
    return givers
