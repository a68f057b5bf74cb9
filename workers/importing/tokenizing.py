"""The canonical tokenizer: one `tokenizer.json` that the tokenizers library reads alone; it never cuts or pads."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ondol.contract.errors import ModelRefused
from workers.importing.sample_texts import SAMPLE_TEXTS
from workers.importing.source import SourceFolder

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
_SIDE_FILES = (CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "merges.txt")
_NORMALISING_KEYS = frozenset({"do_lower_case", "strip_accents", "tokenize_chinese_chars"})
_SANE_LENGTH = 10_000_000
_HANGUL = range(0xAC00, 0xD7A4)


@dataclass(frozen=True, slots=True)
class CanonicalTokenizer:
    """The tokenizer, what its folder says about it, and its largest id."""

    backend: Tokenizer
    special_tokens: dict[str, str]
    input_names: tuple[str, ...]
    model_max_length: int | None
    """None where the folder does not say, or says 1e30."""
    pad_token_id: int | None
    largest_id: int


def read_tokenizer(
    source: SourceFolder, config: dict[str, Any], warnings: list[str], *, has_lower_case: bool
) -> CanonicalTokenizer:
    """The tokenizer of `source`, slow ones converted; ModelRefused if there is none or it cannot be read.

    `has_lower_case`: texts are lower-cased before anything else, as sentence-transformers' `do_lower_case` does.
    """
    vocabulary = next((name for name in (TOKENIZER_FILE, *_VOCABULARIES) if source.has(name)), None)
    if vocabulary is None:
        raise ModelRefused(f"there is no tokenizer; add {TOKENIZER_FILE} (tokenizer.save_pretrained writes it)")
    stated = source.read_object(CONFIG_FILE) if source.has(CONFIG_FILE) else {}
    if "auto_map" in stated:
        raise ModelRefused(f"{CONFIG_FILE} has an auto_map: code that comes with a model is never run")
    fast = _load(source, config, _with_inferred_case(source, vocabulary, stated, warnings))
    backend = _backend(source, fast, stated, warnings)
    backend.no_truncation()
    backend.no_padding()
    if has_lower_case:
        _lower_case_first(backend)
    length = stated.get("model_max_length")
    is_sane = isinstance(length, int | float) and 0 < length <= _SANE_LENGTH
    return CanonicalTokenizer(
        backend=backend,
        special_tokens={name: str(token) for name, token in fast.special_tokens_map.items() if name.endswith("_token")},
        input_names=tuple(fast.model_input_names),
        model_max_length=int(length) if is_sane and length is not None else None,
        pad_token_id=fast.pad_token_id,
        largest_id=max(backend.get_vocab(with_added_tokens=True).values()),
    )


def write_tokenizer(tokenizer: CanonicalTokenizer, target: Path, *, max_length: int) -> None:
    """Write `tokenizer.json` and a `tokenizer_config.json` with which transformers reads exactly that file."""
    tokenizer.backend.save(str(target / TOKENIZER_FILE))
    # This class takes tokenizer.json as it is; the classes of single models rebuild parts of it from these keys.
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": list(tokenizer.input_names),
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_tokens,
    }
    (target / CONFIG_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokens_per_byte(tokenizer: Tokenizer) -> float:
    """Tokens a UTF-8 byte over the sample texts, special tokens included."""
    num_tokens = sum(len(tokenizer.encode(text).ids) for text in SAMPLE_TEXTS)
    return round(num_tokens / sum(len(text.encode()) for text in SAMPLE_TEXTS), 4)


def _load(source: SourceFolder, config: dict[str, Any], stated: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Read copies of the tokenizer's files in a folder that holds nothing else, so that no key leads elsewhere."""
    with tempfile.TemporaryDirectory(prefix="ondol-tokenizer-") as folder:
        for name in (TOKENIZER_FILE, *_VOCABULARIES, *_SIDE_FILES):
            if source.has(name):
                shutil.copyfile(source.file(name), Path(folder, name))
        safe = {key: value for key, value in stated.items() if not key.endswith(("_file", "name_or_path"))}
        if safe:
            Path(folder, CONFIG_FILE).write_text(json.dumps(safe))
        Path(folder, "config.json").write_text(json.dumps(config))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as exc:  # the tokenizers library raises bare Exception on damaged files
            raise ModelRefused(
                f"the tokenizer cannot be read or converted ({_first_line(exc)}); load it with transformers where its "
                f"own libraries are installed, and save it with save_pretrained to get {TOKENIZER_FILE}"
            ) from exc
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelRefused(f"{type(tokenizer).__name__} has no fast form; convert it to {TOKENIZER_FILE} first")
    return tokenizer


def _backend(
    source: SourceFolder, fast: PreTrainedTokenizerFast, stated: dict[str, Any], warnings: list[str]
) -> Tokenizer:
    """What transformers made of the folder; but `tokenizer.json` itself where only a default contradicts it.

    Transformers 5 lower-cases a cased BERT whose tokenizer_config.json was lost, whatever its tokenizer.json says.
    """
    rebuilt: Tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    if not source.has(TOKENIZER_FILE):
        return rebuilt
    try:
        written: Tokenizer = Tokenizer.from_str(source.read_text(TOKENIZER_FILE))
    except Exception as exc:  # the tokenizers library raises bare Exception on damaged files
        raise ModelRefused(f"{TOKENIZER_FILE} cannot be read: {_first_line(exc)}") from exc
    for tokenizer in (written, rebuilt):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    if all(written.encode(text).ids == rebuilt.encode(text).ids for text in SAMPLE_TEXTS):
        return written
    if _NORMALISING_KEYS & set(stated):
        warnings.append(
            f"{TOKENIZER_FILE} and {CONFIG_FILE} disagree; {CONFIG_FILE} was followed, as transformers does"
        )
        return rebuilt
    warnings.append(f"{CONFIG_FILE} does not say how to normalise; {TOKENIZER_FILE} was taken as it is")
    return written


def _with_inferred_case(
    source: SourceFolder, vocabulary: str, stated: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """`stated`, with `do_lower_case` taken from a vocab.txt that is all there is: upper case or Hangul mean cased."""
    if vocabulary != "vocab.txt" or "do_lower_case" in stated:
        return stated
    pieces = [piece for piece in source.read_text(vocabulary).splitlines() if not piece.startswith("[")]
    is_cased = any(piece != piece.lower() or any(ord(char) in _HANGUL for char in piece) for piece in pieces)
    warnings.append(
        f"{CONFIG_FILE} does not say do_lower_case; {str(not is_cased).lower()} was taken, judging by vocab.txt"
    )
    return {**stated, "do_lower_case": not is_cased}


def _lower_case_first(tokenizer: Tokenizer) -> None:
    existing = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
