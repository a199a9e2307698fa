from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from captioning.journal import Journal
from datasets_build.locks import BusyError, locked


def row(sample_id: str, status: str = "success", attempts: int = 1) -> dict[str, Any]:
    return {
        "sample_id": sample_id,
        "prompt_id": "global",
        "status": status,
        "attempts": attempts,
    }


def write_two_batches(path: Path) -> None:
    with closing(Journal(path, fingerprint="f")) as journal:
        journal.add_batch(0, [row("a"), row("b", "timeout")])
        journal.add_batch(1, [row("c")])


def test_finished_batches_are_there_after_a_restart(tmp_path: Path) -> None:
    write_two_batches(tmp_path / "j")
    with closing(Journal(tmp_path / "j", fingerprint="f")) as journal:
        assert [number in journal for number in range(3)] == [True, True, False]
        assert journal.record_of(0)["rows"] == [row("a"), row("b", "timeout")]
        assert journal.failed == {"b": 1}


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_torn_last_line_is_dropped_and_the_journal_goes_on(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "j"
    write_two_batches(path)
    path.write_bytes(path.read_bytes()[:-lost])
    with closing(Journal(path, fingerprint="f")) as journal:
        assert 0 in journal
        assert 1 not in journal
        journal.add_batch(1, [row("d")])
    with closing(Journal(path, fingerprint="f")) as journal:
        assert journal.record_of(1)["rows"] == [row("d")]
        assert journal.record_of(0)["rows"][0] == row("a")


def test_a_torn_first_line_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"fing')
    with closing(Journal(tmp_path / "j", fingerprint="f")) as journal:
        journal.add_batch(0, [row("a")])
    with closing(Journal(tmp_path / "j", fingerprint="f")) as journal:
        assert 0 in journal


def test_damage_before_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write_two_batches(path)
    path.write_bytes(path.read_bytes().replace(b'"batch": 0', b'"batch": x'))
    with pytest.raises(ValueError, match="damaged in line 2"):
        Journal(path, fingerprint="f")


def test_a_journal_of_another_plan_is_refused(tmp_path: Path) -> None:
    write_two_batches(tmp_path / "j")
    with pytest.raises(ValueError, match="belongs to another plan"):
        Journal(tmp_path / "j", fingerprint="g")


def test_the_latest_try_of_a_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write_two_batches(path)
    with closing(Journal(path, fingerprint="f")) as journal:
        journal.begin_attempt(2)
        journal.add_retry("b", [row("b", "success", 2)])
    with closing(Journal(path, fingerprint="f")) as journal:
        assert journal.attempt == 2
        assert journal.record_of(0)["rows"] == [row("a"), row("b", "success", 2)]
        assert journal.record_of(0, with_retries=False)["rows"][1] == row("b", "timeout")
        assert journal.failed == {}


def test_a_full_disk_is_an_error_that_names_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    with closing(Journal(path, fingerprint="f")) as journal:

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=f"No space left on device while writing {path}"):
            journal.add_batch(0, [row("a")])
        assert 0 not in journal


def test_only_one_process_works_on_a_shard(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", fingerprint="f")
    with pytest.raises(BusyError):
        Journal(tmp_path / "j", fingerprint="f")
    first.close()
    Journal(tmp_path / "j", fingerprint="f").close()
    with (
        locked(tmp_path / "lock", wait=True),
        pytest.raises(BusyError),
        locked(tmp_path / "lock", wait=False),
    ):
        pass


def test_the_batches_of_a_journal_in_use_can_be_counted(tmp_path: Path) -> None:
    write_two_batches(tmp_path / "j")
    with (
        closing(Journal(tmp_path / "j", fingerprint="f")) as journal,
        journal.path.open("ab") as file,
    ):
        file.write(b'{"batch": 2, "ro')
        file.flush()
        assert Journal.batches_in(journal.path) == {0, 1}
