"""An application that has Celery and knows nothing of Ondol: it sends tasks and gets results.

ONDOL_BROKER=$(cat ondol-data/run/redis.url) python examples/celery_producer.py "the kettle is warm" "온돌은 따뜻하다"
"""

import os
import sys

from celery import Celery

broker = os.environ["ONDOL_BROKER"]
app = Celery("shop", broker=broker, backend=broker)


def embed(texts: list[str]) -> list[list[float]]:
    """Vectors of the texts, in order; raises ValueError, LookupError or TimeoutError with Ondol's message."""
    sent = app.send_task(
        "ondol.embedding",
        kwargs={"model": "all-minilm-l6-v2", "input": texts},
        queue="ondol.jobs",
        kwargsrepr="(texts)",  # what this application's own events may show
    )
    result = sent.get(timeout=60)
    return [item["output"] for item in result["data"]]


if __name__ == "__main__":
    for text, vector in zip(sys.argv[1:], embed(sys.argv[1:]), strict=True):
        print(f"{len(vector)} dimensions for {text!r}")
