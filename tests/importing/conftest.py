"""Tiny folders, made once a run, and an import in this process: the child itself has tests of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ondol.contract.model_spec import ModelSpec
from tests.tiny_models import TinyModules, make_tiny_model, make_tiny_sentence_transformer

Import = Callable[..., tuple[ModelSpec, Path]]


@pytest.fixture(scope="session")
def plain_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture(scope="session")
def sentence_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = TinyModules(dense=8, has_layer_norm=True, has_normalize=True)
    return make_tiny_sentence_transformer(tmp_path_factory.mktemp("sentence") / "sentence", modules=modules)


@pytest.fixture
def plain(plain_template: Path, tmp_path: Path) -> Path:
    """A plain folder of this test's own."""
    return Path(shutil.copytree(plain_template, tmp_path / "plain"))


@pytest.fixture
def sentence(sentence_template: Path, tmp_path: Path) -> Path:
    """A sentence-transformers folder of this test's own: Transformer, Pooling, Dense, LayerNorm, Normalize."""
    return Path(shutil.copytree(sentence_template, tmp_path / "sentence"))


@pytest.fixture
def run_here(tmp_path: Path) -> Import:
    """`import_model` into a new folder; gives spec and folder."""
    from workers.importing.importer import import_model

    def run(source: Path, *, convert_bin: bool = False) -> tuple[ModelSpec, Path]:
        target = tmp_path / "target"
        target.mkdir()
        return import_model(source, target, convert_bin=convert_bin), target

    return run
