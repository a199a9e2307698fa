from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from operator import mul
from pathlib import Path

import numpy as np
import pytest

from captioning.decode_pool import DecodePool


def process_of_worker() -> partial[int]:
    return partial(os.getpid)


def test_outcomes_come_by_ticket_in_any_order() -> None:
    with DecodePool(2, timeout_s=30) as pool:
        tickets = [pool.submit(partial(mul, number, 2)) for number in range(20)]
        assert [pool.take(ticket).value for ticket in reversed(tickets)] == list(range(38, -2, -2))


def test_a_hanging_call_is_killed_at_its_deadline_and_the_others_are_answered() -> None:
    with DecodePool(1, timeout_s=1.0) as pool:
        assert pool.take(pool.submit(partial(int, "1"))).value == 1  # the worker is up
        started = time.monotonic()
        hanging, after = pool.submit(partial(time.sleep, 600)), pool.submit(partial(int, "2"))
        outcome = pool.take(hanging)
        assert outcome.timed_out
        assert outcome.problem == "decoding took longer than 1 s and was stopped"
        assert 1.0 <= time.monotonic() - started < 10.0
        assert pool.take(after).value == 2


def test_a_call_that_cannot_be_interrupted_is_killed_too() -> None:
    # SIGSTOP: the process answers to nothing any more, like a decoder stuck inside C.
    with DecodePool(1, timeout_s=1.0) as pool:
        own = pool.take(pool.submit(process_of_worker())).value
        assert pool.take(pool.submit(partial(os.kill, own, signal.SIGSTOP))).timed_out
        with pytest.raises(ProcessLookupError):
            os.kill(own, 0)


def test_outcomes_of_many_calls_come_as_they_are_ready_and_are_asked_for_as_needed() -> None:
    num_taken = 0

    def calls() -> Iterator[tuple[str, partial[object]]]:
        nonlocal num_taken
        yield "slow", partial(time.sleep, 600)
        for number in range(100):
            num_taken += 1
            yield str(number), partial(int, str(number))

    with DecodePool(2, timeout_s=3.0) as pool:
        outcomes = pool.outcomes(calls())
        first = [next(outcomes) for _ in range(50)]  # nothing waits for the slow one
        assert all(outcome.value == int(key) for key, outcome in first)
        assert num_taken <= 60
        rest = dict(outcomes)
    assert len(rest) == 51
    assert rest["slow"].timed_out


def test_no_call_at_all_has_no_outcome() -> None:
    with DecodePool(2, timeout_s=3.0) as pool:
        assert list(pool.outcomes([])) == []


def test_a_crash_ends_one_call_and_says_how() -> None:
    with DecodePool(1, timeout_s=30) as pool:
        own = pool.take(pool.submit(process_of_worker())).value
        crash = pool.submit(partial(os.kill, own, signal.SIGSEGV))
        after = pool.submit(process_of_worker())
        assert pool.take(crash).problem == "the decoding process died (signal 11)"
        assert pool.take(after).value != own


def test_an_exception_is_the_problem_of_its_call() -> None:
    with DecodePool(1, timeout_s=30) as pool:
        outcome = pool.take(pool.submit(partial(int, "x")))
        assert outcome.problem == "ValueError: invalid literal for int() with base 10: 'x'"
        assert not outcome.timed_out


def test_arrays_come_back_whole() -> None:
    with DecodePool(1, timeout_s=30) as pool:
        array = pool.take(pool.submit(partial(np.full, (16, 3, 160, 288), 7, np.uint8))).value
        assert array.shape == (16, 3, 160, 288)
        assert (array == 7).all()


def test_no_worker_outlives_the_pool() -> None:
    with DecodePool(2, timeout_s=30) as pool:
        own = pool.take(pool.submit(process_of_worker())).value
        pool.submit(partial(time.sleep, 600))
    with pytest.raises(ProcessLookupError):
        os.kill(own, 0)


def test_workers_that_do_not_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (
        DecodePool(1, timeout_s=30) as pool,
        pytest.raises(RuntimeError, match="ended with code 1 while it started"),
    ):
        pool.take(pool.submit(partial(int, "1")))


@pytest.mark.skipif(sys.platform != "linux", reason="the system of other platforms does not do it")
def test_a_worker_in_the_middle_of_a_call_ends_with_its_parent() -> None:
    program = """
import time
from functools import partial
from captioning.decode_pool import DecodePool
pool = DecodePool(1, timeout_s=600)
pool.submit(partial(time.sleep, 600))
while not pool._workers or not pool._workers[0].is_ready or pool._workers[0].ticket is None:
    time.sleep(0.01)
print(pool._workers[0].process.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert parent.stdout is not None
    worker = Path("/proc") / parent.stdout.readline().strip()
    assert worker.is_dir()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while worker.is_dir() and "Z" not in (worker / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)
