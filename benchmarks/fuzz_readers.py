"""A hundred thousand damaged files against the readers of skeletons and zips; each must be named.

    python benchmarks/fuzz_readers.py --count 100000 --seed 0
    python benchmarks/fuzz_readers.py --only skeleton:1234       # one input again, kept as a file

Half of the inputs go to `read_skeleton` (and `select_bodies` after it), a quarter to `read_nwucla`,
a quarter are zips for `list_clips` and `read_clip`. The first ones are crafted by hand, the others
are mutations of these, of made-up clips and of the real ones in ../shared where they are there.
What is checked of each input:
- it is accepted or refused with a reason that the reader documents, and no other exception comes;
- it takes at most --max-seconds of CPU time, and a minute of wall time in any case;
- what is accepted is finite and within the stated bounds; a clip is what a plain reader gets from
  the same bytes, a zip's entry has its checksum;
- the memory of the process stays below --max-mb over what it had at the start, as address space
  (RLIMIT_AS) and as the highest resident size.
A plain seeded mutation, not hypothesis: it is many times as fast, and an input is found again by
its number. tests/datasets_build has hypothesis on the same readers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import damaged_files as made  # the program's own folder is the first on sys.path
import numpy as np
from build_speed import read_plainly

from datasets_build import ntu, nwucla
from datasets_build.bodies import NUM_ACTORS, BodySettings, select_bodies
from datasets_build.sources import (
    MAX_CLIP_BYTES,
    ClipError,
    leaves_its_folder,
    list_clips,
    read_clip,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
WHOLE_FILE_SHARE = 0.1  # of the mutations: of a file of real length
MAX_PLAIN_BYTES = 2_000_000  # larger ones are not read a second time
MAX_DETAIL = 1000  # characters
MAX_ENTRIES = 50  # of a zip that are read


class TooSlow(BaseException):
    """A minute is over; no `except Exception` catches it."""


@dataclass
class Target:
    """One reader.

    Attributes:
        name: for the table and --only.
        share: of all inputs.
        reasons: that it documents.
        check: reads one input and raises ClipError (refused) or AssertionError (wrong).
        crafted: its first inputs.
        small: what is mutated most of the time.
        whole: what is mutated now and then: clips of real length.
        mutate: changes one of these.
    """

    name: str
    share: float
    reasons: str
    check: Callable[[bytes], None]
    crafted: list[bytes]
    small: list[bytes]
    whole: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]

    def input(self, number: int, seed: int) -> bytes:
        """Input `number`, always the same for one seed."""
        if number < len(self.crafted):
            return self.crafted[number]
        rng = random.Random(f"{seed} {self.name} {number}")
        if rng.random() < WHOLE_FILE_SHARE:
            return self.mutate(rng.choice(self.whole), rng)
        if rng.random() < 0.3:
            return self.mutate(rng.choice([d for d in self.crafted if len(d) < 100_000]), rng)
        return self.mutate(rng.choice(self.small), rng)


@dataclass
class Tally:
    """What happened to the inputs of one target."""

    num_inputs: int = 0
    num_accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = -1
    violations: list[str] = field(default_factory=list)


def check_skeleton(data: bytes) -> None:
    """See Target.check."""
    recording = ntu.read_skeleton(data)
    assert 0 < recording.num_frames <= ntu.MAX_FRAMES
    assert 0 < len(recording.bodies) <= ntu.MAX_BODIES
    for track in recording.bodies:
        assert track.joints.shape == (len(track.frames), ntu.NUM_JOINTS, 3)
        assert track.tracking.shape == track.joints.shape[:2]
        assert np.isfinite(track.joints).all()
        assert np.abs(track.joints).max() <= ntu.MAX_COORDINATE_M
        assert (np.diff(track.frames) >= 0).all()
        assert 0 <= track.frames[0] <= track.frames[-1] < recording.num_frames
    if len(data) <= MAX_PLAIN_BYTES:
        plain = read_plainly(io.BytesIO(data))
        for track, joints in zip(recording.bodies, plain.values(), strict=True):
            assert np.array_equal(track.joints, joints), "another number than a plain reader's"
    for settings in (BodySettings(keep_gaps=True), BodySettings()):
        joints = select_bodies(recording, settings)
        assert joints.dtype == np.float32
        assert 1 <= len(joints) <= NUM_ACTORS
        assert 1 <= joints.shape[1] <= recording.num_frames, "no frame or too many"
        assert np.isfinite(joints).all()


def check_nwucla(data: bytes) -> None:
    """See Target.check."""
    joints = nwucla.read_nwucla(data)
    assert joints.dtype == np.float32
    assert joints.shape[::2] == (1, nwucla.NUM_JOINTS)
    assert 1 <= joints.shape[1] <= nwucla.MAX_FRAMES
    assert np.isfinite(joints).all()
    assert np.abs(joints).max() <= nwucla.MAX_COORDINATE_M
    assert np.array_equal(joints[0], np.array(json.loads(data)["skeletons"], np.float32))
    assert np.isfinite(nwucla.nwucla_normalised(joints)).all()


@dataclass
class ZipCheck:
    """Check of the zip reader, with a count of what became of the entries."""

    folder: Path
    number: int = 0
    entries: Counter[str] = field(default_factory=Counter)

    def __call__(self, data: bytes) -> None:
        """See Target.check."""
        self.number += 1  # opened zips are remembered by path
        path = self.folder / f"{self.number}.zip"
        path.write_bytes(data)
        try:
            self._check(path)
        finally:
            path.unlink()

    def _check(self, path: Path) -> None:
        try:
            files = list_clips(path)
        except ValueError as error:
            word = "not_a_zip" if str(path) in str(error) else "a message without the path"
            raise ClipError(word, str(error)[:MAX_DETAIL]) from error
        for file in files[:MAX_ENTRIES]:
            assert file.name
            assert str(path) in str(file)
            leaves_its_folder(file.member)
            try:
                content = read_clip(file)
            except ClipError as error:
                self.entries[error.reason] += 1
            else:
                self.entries["read"] += 1
                assert len(content) == file.num_bytes <= MAX_CLIP_BYTES
                assert zlib.crc32(content) == file.crc32
        strange = self.entries.keys() - {"read", "cannot_read", "too_large"}
        assert not strange, f"undocumented reason {strange}"


def all_targets(seed: int, folder: Path) -> dict[str, Target]:
    """The three readers and what is mutated for them."""
    rng = random.Random(seed)
    real = [path.read_bytes() for path in sorted((SHARED / "data/ntu/skeletons").glob("*"))]
    clips = [made.skeleton_clip(rng, t, m) for t, m in ((1, 1), (2, 2), (4, 1), (3, 3), (14, 2))]
    clips += [made.skeleton_clip(rng, 3, 2, "\r\n"), made.skeleton_clip(rng, 13, 1)]
    source = SHARED / "data/nw-ucla/all_sqe.zip"
    files = [f for f in list_clips(source) if f.name.endswith(".json")] if source.is_file() else []
    zips = [made.zip_of([(f"a/{i}.skeleton", c) for i, c in enumerate(clips[:n])]) for n in (1, 3)]
    zips.append(made.zip_of([("a.skeleton", clips[0]), ("b", b"x")], made.STORED))
    targets = [
        Target(
            "skeleton",
            0.5,
            "empty not_text truncated bad_count wrong_joint_count bad_number not_finite "
            "out_of_range trailing_data no_body no_body_left body_repeated",
            check_skeleton,
            made.crafted_skeletons(rng),
            clips,
            [*real, made.skeleton_clip(rng, 100, 2)],
            made.mutated_text,
        ),
        Target(
            "nwucla",
            0.25,
            "empty too_large not_json repeated_key no_frames bad_count wrong_joint_count "
            "bad_number not_finite out_of_range",
            check_nwucla,
            made.crafted_nwucla(rng),
            [made.nwucla_clip(rng, t) for t in (1, 2, 5)],
            [made.nwucla_clip(rng, 100), *(read_clip(file) for file in files[:20])],
            made.mutated_text,
        ),
        Target(
            "zip",
            0.25,
            "not_a_zip",
            ZipCheck(folder),
            made.crafted_zips(rng),
            zips,
            [made.zip_of([(f"{i}.skeleton", clip) for i, clip in enumerate([*clips, *real])])],
            made.mutated_zip,
        ),
    ]
    return {target.name: target for target in targets}


def reason_of(target: Target, data: bytes) -> str | None:
    """Why an input is refused, None when it is accepted."""
    try:
        target.check(data)
    except ClipError as error:
        refused = error
    else:
        return None
    assert refused.reason in target.reasons.split(), f"undocumented reason {refused}"
    assert 0 < len(refused.detail) <= MAX_DETAIL, f"{len(refused.detail)} characters of detail"
    return refused.reason


def on_alarm(signum: int, frame: object) -> None:
    """What SIGALRM does."""
    raise TooSlow("a minute")


def peak_mb() -> float:
    """The most memory that this process ever held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def address_space() -> int:
    """The address space of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def fuzz(target: Target, count: int, *, seed: int, max_seconds: float) -> Tally:
    """Run the inputs of one target."""
    tally = Tally()
    for number in range(count):
        data = target.input(number, seed)
        name = f"{target.name}:{number} ({len(data)} bytes)"
        reason: str | None = "violation"
        signal.alarm(60)
        began = time.process_time()
        try:
            reason = reason_of(target, data)
        except (Exception, TooSlow) as error:
            tally.violations.append(f"{name} {type(error).__name__}: {str(error)[:200]}")
        took = time.process_time() - began
        signal.alarm(0)
        if took > max_seconds:
            tally.violations.append(f"{name} takes {took:.2f} s")
        tally.num_inputs += 1
        if reason is None:
            tally.num_accepted += 1
        else:
            tally.reasons[reason] += 1
        if took > tally.slowest_s:
            tally.slowest_s, tally.slowest = took, number
    return tally


def report(targets: dict[str, Target], count: int, *, seed: int, max_seconds: float) -> list[str]:
    """Fuzz every target and print the table; the violations."""
    violations = []
    print(f"{'target':10} {'inputs':>7} {'accepted':>9} {'slowest ms':>20}  refused by reason")
    for target in targets.values():
        tally = fuzz(target, int(count * target.share), seed=seed, max_seconds=max_seconds)
        violations += tally.violations
        reasons = ", ".join(f"{word} {num}" for word, num in tally.reasons.most_common())
        slowest = f"{tally.slowest_s * 1000:.1f} (input {tally.slowest})"
        print(
            f"{target.name:10} {tally.num_inputs:7} {tally.num_accepted:9} {slowest:>20}  {reasons}"
        )
        if isinstance(target.check, ZipCheck):
            print(f"{'':10} entries of the zips that open: {dict(target.check.entries)}")
        sys.stdout.flush()
    return violations


def main() -> None:
    """Parse the command line, fuzz, print a table; exit 1 at any violation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=1.0, help="CPU time for one input")
    parser.add_argument("--max-mb", type=float, default=512, help="memory beside the inputs")
    parser.add_argument("--only", help="TARGET:NUMBER of one input")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        targets = all_targets(options.seed, Path(folder))
        if options.only:
            name, number = options.only.split(":")
            data = targets[name].input(int(number), options.seed)
            Path(f"{name}-{number}").write_bytes(data)
            print(f"wrote {name}-{number}; refused: {reason_of(targets[name], data)}")
            return
        signal.signal(signal.SIGALRM, on_alarm)
        reason_of(targets["skeleton"], targets["skeleton"].whole[-1])  # what is made once
        start_mb = peak_mb()
        limit = address_space() + int(options.max_mb * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        began = time.monotonic()
        violations = report(
            targets, options.count, seed=options.seed, max_seconds=options.max_seconds
        )
    grown = peak_mb() - start_mb
    if grown > options.max_mb:
        violations.append(f"the process grew by {grown:.0f} MB")
    seconds = time.monotonic() - began
    print(f"seed {options.seed}, {seconds:.0f} s, resident memory grew by {grown:.0f} MB")
    print(f"violations: {len(violations)}")
    print("\n".join(violations[:30]))
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
