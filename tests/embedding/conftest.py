"""One running Ondol for all tests of embedding, with the packaged real models and tiny ones in both dialects.

Its own processes run with imports of torch and transformers forbidden: whatever a test does is also that test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.embedding import no_torch
from tests.served import Served
from tests.tiny_models import TinyModules, make_tiny_model, make_tiny_sentence_transformer
from workers.offline_models import E5, MINILM, offline_model_folders

OLD_MODULES = TinyModules(
    pooling=("cls", "mean"),
    include_prompt=False,
    dense=16,
    has_layer_norm=True,
    has_normalize=True,
    prompts={"query": "find this: ", "passage": "text: "},
    default_prompt_name="passage",
)
NEW_MODULES = TinyModules(dense=48, activation="torch.nn.modules.activation.GELU", prompts={"query": "query: "})


@dataclass(frozen=True, slots=True)
class Models:
    """The models that are served, by name: the folders they came from, and the dimensions that their imports stated.

    `imported`: what the jobs answered that imported one packaged and one tiny model. The default model came by a job
    too, the others were published without.
    """

    folders: dict[str, Path]
    imported: dict[str, dict[str, Any]]
    dimensions: dict[str, int | None]


@pytest.fixture(scope="session")
def forbidden(tmp_path_factory: pytest.TempPathFactory) -> no_torch.Forbidden:
    """The import hook that the stack's processes carry."""
    return no_torch.install(tmp_path_factory.mktemp("hook"))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, forbidden: no_torch.Forbidden) -> Iterator[Served]:
    """The running Ondol, all in float32."""
    ondol = Served(tmp_path_factory.mktemp("embedding"), ONDOL_DEVICES="cpu:1x2", PYTHONPATH=str(forbidden.folder))
    yield ondol
    ondol.close()


@pytest.fixture(scope="session")
def models(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The models of `served`."""
    place = tmp_path_factory.mktemp("folders")
    packaged = offline_model_folders()
    by_job = {
        E5: packaged[E5],
        "tiny-new": make_tiny_sentence_transformer(place / "tiny-new", "roberta", modules=NEW_MODULES, seed=1),
    }
    others = {
        "tiny-old": make_tiny_sentence_transformer(place / "tiny-old", dialect="old", modules=OLD_MODULES),
        "tiny-plain": make_tiny_model(place / "tiny-plain", seed=2),
    }
    imported = served.import_all(by_job)
    dimensions = {name: result["dimensions"] for name, result in imported.items()}
    dimensions |= {name: spec.dimensions for name, spec in served.publish_all(others).items()}
    return Models({MINILM: packaged[MINILM], **others, **by_job}, imported, dimensions)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, as it comes."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="not-needed-here") as client:
        yield client
