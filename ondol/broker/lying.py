"""How much lies in the queues of a Celery node and was not taken: asked over a connection of its own."""

from __future__ import annotations

from collections.abc import Sequence

import redis
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ondol.broker.connection import connect

log = structlog.get_logger(__name__)

ANSWER_LIMIT_S = 2.0


class QueueLook:
    """Looks at `queues`; one thread uses it."""

    def __init__(self, redis_url: str, queues: Sequence[str]) -> None:
        self._client: redis.Redis = connect(redis_url, answer_limit_s=ANSWER_LIMIT_S, retry=Retry(NoBackoff(), 0))
        self._queues = queues

    def num_lying(self) -> int | None:
        """Messages that nobody has taken; None when Redis did not answer within two seconds."""
        try:
            pipeline = self._client.pipeline(transaction=False)
            for queue in self._queues:
                pipeline.llen(queue)
            return sum(int(num) for num in pipeline.execute())
        except (RedisError, OSError) as exc:
            log.debug("queues.not_seen", reason=str(exc)[:200])
            return None

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()
