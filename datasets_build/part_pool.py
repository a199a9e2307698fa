"""Processes that make parts: a pipe for each, so that one that dies never holds up another.

(In concurrent.futures all workers share the lock of one queue; where a worker is killed that holds
it while the pool is being closed, the others and the parent wait for ever.)
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess

import pyarrow as pa

from datasets_build.child_processes import follow_parent
from datasets_build.parts import PartJob, PartResult, build_part


def built_parts(jobs: Sequence[PartJob], num_workers: int) -> Iterator[tuple[PartJob, PartResult]]:
    """Every job's result as it comes, made by `num_workers` processes.

    Raises:
        RuntimeError: a process died.
        Exception: whatever `build_part` raised in a process.
    """
    # spawn: the caller may have loaded torch, whose threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(jobs))
    running: dict[Connection, PartJob] = {}
    workers: list[BaseProcess] = []
    try:
        pipes: list[Connection] = []
        for _ in range(min(num_workers, len(jobs))):
            ours, theirs = context.Pipe()
            workers.append(context.Process(target=_work, args=(theirs,), daemon=True))
            workers[-1].start()
            theirs.close()  # the worker's copy is the only one left: the pipe ends with it
            pipes.append(ours)
        for pipe in pipes:
            running[pipe] = waiting.pop()
            pipe.send(running[pipe])
        while running:
            ready = wait_for(list(running))
            for pipe in [pipe for pipe in pipes if pipe in ready]:
                job, result = running.pop(pipe), pipe.recv()
                if isinstance(result, BaseException):
                    raise result
                if waiting:
                    running[pipe] = waiting.pop()
                    pipe.send(running[pipe])
                yield job, result
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(
            "a worker process died, most likely for want of memory; run the same command again "
            "with fewer --workers or smaller --shard-rows: finished parts are kept"
        ) from error
    finally:
        for worker in workers:
            worker.kill()  # it is idle, or nobody waits for its part any more
            worker.join()


def _work(pipe: Connection) -> None:
    """Make parts until the parent ends this process."""
    follow_parent()
    pa.set_cpu_count(1)
    while True:
        job = pipe.recv()
        try:
            result: PartResult | Exception = build_part(job)
        except Exception as error:
            result = error
        pipe.send(result)
