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
    """The models that are served, by name: the folders they came from, and what their imports answered."""

    folders: dict[str, Path]
    imported: dict[str, dict[str, Any]]


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
    """The models of `served`, imported by jobs."""
    place = tmp_path_factory.mktemp("folders")
    packaged = offline_model_folders()
    new = {
        E5: packaged[E5],
        "tiny-old": make_tiny_sentence_transformer(place / "tiny-old", dialect="old", modules=OLD_MODULES),
        "tiny-new": make_tiny_sentence_transformer(place / "tiny-new", "roberta", modules=NEW_MODULES, seed=1),
        "tiny-plain": make_tiny_model(place / "tiny-plain", seed=2),
    }
    return Models({MINILM: packaged[MINILM], **new}, served.import_all(new))


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, as it comes."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="not-needed-here") as client:
        yield client
