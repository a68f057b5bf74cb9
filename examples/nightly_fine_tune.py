"""Train on tonight's data, and promote the new version only if it is better than the one in production.

    python examples/nightly_fine_tune.py reviews train.csv test.csv

Both versions are judged by the same labelled file, which nobody trained on. `production` is moved by compare-and-set:
if somebody else moved it meanwhile, this run says so and changes nothing. Meant for cron; exit code 0 also when the old
version stays.
"""

import argparse
import csv

from ondol import NoSuchThing, Ondol, StateConflict


def accuracy(client: Ondol, ref: str, rows: list[dict[str, str]]) -> float:
    """The share of rows whose best label is the right one."""
    found = client.classify([row["text"] for row in rows], model=ref, top_k=1)
    hits = sum(labels[0].label == row["label"] for labels, row in zip(found, rows, strict=True))
    return hits / len(rows)


def version_in_production(client: Ondol, name: str) -> int | None:
    """The number of the version that `production` points to; None on the first night."""
    try:
        aliases = client.models.aliases(name)
    except NoSuchThing:
        return None
    return next((int(a.version.rpartition(":")[2]) for a in aliases if a.name == "production"), None)


def main() -> None:
    """Train, judge, promote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--base", default="all-minilm-l6-v2")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    given = parser.parse_args()
    with open(given.test, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    with Ondol() as client:
        current = version_in_production(client, given.name)
        job = client.fine_tune(
            given.train, model=given.base, name=given.name, epochs=given.epochs, learning_rate=given.learning_rate
        )
        job.wait(progress=True)
        new = str(job.result().model)
        new_accuracy = accuracy(client, new, rows)
        old_accuracy = accuracy(client, f"{given.name}:{current}", rows) if current else 0.0
        verdict = f"{new}: {new_accuracy:.3f}, in production: {old_accuracy:.3f}"
        if current and new_accuracy <= old_accuracy:
            print(f"{verdict}; stays as it is")
            return
        try:
            number = int(new.rpartition(":")[2])
            client.models.set_alias(given.name, "production", number, expected=current, reason=f"nightly: {verdict}")
        except StateConflict as error:
            raise SystemExit(f"{verdict}; not promoted: {error}") from error
        print(f"{verdict}; promoted")


if __name__ == "__main__":
    main()
