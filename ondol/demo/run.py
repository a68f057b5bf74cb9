"""The demo from beginning to end: start, import, embed, score, search, tag, fine-tune, classify, stop."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ondol.client.sync_client import Ondol
from ondol.demo.entities import SENTENCES, FoundEntity, find_entities
from ondol.demo.errors import DemoFailed
from ondol.demo.loop import LoopRun, run_loop
from ondol.demo.search import Match, search
from ondol.demo.similarity import DemoModel, SimilarityRun, finish, run_similarity
from ondol.demo.stack import Stack
from ondol.demo.texts import TRAINING_FILE, read_answers, read_pairs, read_questions

# Floors: a little under what the models reach on these pairs with sentence-transformers. MiniLM has no Korean.
ENGLISH = DemoModel("all-minilm-l6-v2", None, {"en": 0.88})
MULTILINGUAL = DemoModel("multilingual-e5-small", "query", {"en": 0.86, "ko": 0.79})
TAGGER = "rampart-pii"
LANGUAGES = ("en", "ko")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo found."""

    runs: tuple[SimilarityRun, ...]
    matches: tuple[Match, ...]
    entities: tuple[FoundEntity, ...]
    loop: LoopRun
    seconds: float


def run_demo(say: Say) -> DemoReport:
    """Run the demo on a temporary folder and leave nothing behind; `say` is told what happens. Blocks for minutes.

    Raises DemoFailed, JobFailed or another OndolError when a part does not work.
    """
    started_at = time.monotonic()
    folder = weights_folder(MULTILINGUAL.name)
    with tempfile.TemporaryDirectory(prefix="ondol-") as data_dir:
        say("starting Redis, api, worker, trainer and reconciler, importing the default model")
        with Stack(Path(data_dir) / "data") as stack, Ondol(stack.url) as client:
            say(f"ready at {stack.url} after {time.monotonic() - started_at:.1f} s")
            _import(client, MULTILINGUAL.name, folder, say)
            runs = tuple(_run_all(client, say))
            say("looking for the nearest of 1,000 Korean questions")
            matches = tuple(search(client, MULTILINGUAL, read_answers()))
            _import(client, TAGGER, weights_folder(TAGGER), say)
            entities = tuple(find_entities(client, TAGGER))
            say(f"{len(entities)} entities found in {len(SENTENCES)} sentences")
            loop = _run_loop(client, say)
            say("stopping")
    return DemoReport(runs, matches, entities, loop, time.monotonic() - started_at)


def weights_folder(name: str) -> Path:
    """The folder of a model that `make venv` prepared; DemoFailed if it is not there."""
    folder = Path(sys.prefix) / "share" / "ondol" / "models" / name
    if not folder.is_dir():
        raise DemoFailed(f"{folder} is missing; run `make venv`, which prepares the demo's models")
    return folder


def _import(client: Ondol, name: str, folder: Path, say: Say) -> None:
    say(f"importing {name}")
    job = finish(client.models.import_(folder, name))
    say(f"imported {job.result().model or name} in {job.run_s or 0:.1f} s")


def _run_loop(client: Ondol, say: Say) -> LoopRun:
    train, test = read_questions("train"), read_questions("test")
    say(f"fine-tuning {ENGLISH.name} on {len(train):,} questions (some minutes)")
    run = run_loop(client, ENGLISH.name, str(TRAINING_FILE), train, test)
    say(f"{run.model} published after {run.training_s:.0f} s, first answer {run.first_answer_s:.2f} s later")
    return run


def _run_all(client: Ondol, say: Say) -> list[SimilarityRun]:
    runs = []
    for model in (ENGLISH, MULTILINGUAL):
        begun_at = time.monotonic()
        client.embed("Is the floor warm?", model=model.name, **model.options())
        say(f"{model.name} is warm: first call answered in {time.monotonic() - begun_at:.2f} s")
        for language in LANGUAGES:
            run = run_similarity(client, model, language, read_pairs(language))
            say(f"{run.num_texts} texts ({language}) embedded in {run.seconds:.1f} s, {run.texts_per_s:.0f} texts/s")
            runs.append(run)
    return runs
