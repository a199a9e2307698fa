"""`--cluster ray`: a planned run on a Ray cluster; actors that load the model once, a task a shard.

The folder of the run and the videos must lie where every node finds them under the same path. Ray
starts a dead actor again and repeats its task, which goes on from the shard's journal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from captioning.config import CaptionConfig
from captioning.plan import Plan
from captioning.results import recorded_config
from captioning.run import Distribute
from datasets_build.progress import Progress, SilentProgress


class ShardActor:
    """One captioning process of a cluster."""

    def __init__(self, settings: dict[str, Any], attempt: int) -> None:
        from captioning.decode_pool import DecodePool
        from captioning.run import join_run

        config = CaptionConfig.model_validate(settings)
        # Not closed: the decoding processes end with the actor, which Ray may kill.
        pool = DecodePool(config.num_decoders, timeout_s=config.decode_timeout_s)
        self._session = join_run(config, SilentProgress(), pool, attempt=attempt)

    def caption(self, shard: int) -> int:
        """Work on a shard until it is written; its number."""
        self._session.run_shards([shard])
        return shard


def on_ray(*, address: str | None = None, num_actors: int | None = None) -> Distribute:
    """What `run` hands its shards to: the actors of a Ray cluster.

    Args:
        address: of the cluster ("auto", "ray://host:10001"); None takes RAY_ADDRESS, or starts Ray
            on this machine.
        num_actors: None takes one for each GPU of the cluster, or one where there is none.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "--cluster ray needs Ray; install it: pip install 'hocslm[ray]'"
        ) from error

    def distribute(
        config: CaptionConfig,
        plan: Plan,
        shards: Sequence[int],
        attempt: int,
        progress: Progress,
    ) -> None:
        if not ray.is_initialized():
            ray.init(
                address=address or os.environ.get("RAY_ADDRESS"),
                log_to_driver=False,
                include_dashboard=False,
            )
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0))
        count = min(num_actors or num_gpus or 1, len(shards))
        share = max(1, int(resources.get("CPU", 1)) // max(1, count))  # cores of each actor
        num_workers = config.num_workers or min(share, config.num_decoders)
        settings = recorded_config(config) | {"num_workers": num_workers}
        actor: Any = ray.remote(
            num_gpus=1 if num_gpus else 0, num_cpus=1, max_restarts=-1, max_task_retries=-1
        )(ShardActor)
        actors: list[Any] = [actor.remote(settings, attempt) for _ in range(count)]
        try:
            waiting = list(reversed(shards))
            running = {each.caption.remote(waiting.pop()): each for each in actors}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                free = running.pop(done)
                progress.advance(plan.num_clips_of(ray.get(done)))
                if waiting:
                    running[free.caption.remote(waiting.pop())] = free
        finally:
            for each in actors:
                ray.kill(each)

    return distribute
