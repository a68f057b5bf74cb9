"""A plain fine-tuning script, as one writes it with transformers alone: the measure of our training child.

`python bench/quality_script.py --task … --base DIR --train FILE --dev FILE --out DIR …`; imports nothing of Ondol.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

WORD = re.compile(r"\w+|[^\w\s]")


class Encoded(Dataset[dict[str, Any]]):
    """Encoded rows, as the Trainer takes them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV or JSONL file."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words_of(row: dict[str, Any]) -> tuple[list[str], list[str], str, list[tuple[int, int]]]:
    """Words, tags, the text and each word's place in it."""
    if "tokens" in row:
        spans, end = [], 0
        for token in row["tokens"]:
            spans.append((end, end + len(token)))
            end += len(token) + 1
        return row["tokens"], row["tags"], " ".join(row["tokens"]), spans
    edges = {place for entity in row["entities"] for place in (entity["start"], entity["end"])}
    spans = []
    for match in WORD.finditer(row["text"]):
        cuts = [match.start(), *sorted(e for e in edges if match.start() < e < match.end()), match.end()]
        spans += list(pairwise(cuts))
    tags = ["O"] * len(spans)
    for entity in row["entities"]:
        inside = [i for i, (start, end) in enumerate(spans) if start >= entity["start"] and end <= entity["end"]]
        for number, index in enumerate(inside):
            tags[index] = ("I-" if number else "B-") + entity["label"]
    return [row["text"][start:end] for start, end in spans], tags, row["text"], spans


def encode_texts(rows: list[dict[str, Any]], tokenizer: Any, labels: list[str], max_length: int) -> Encoded:
    """Rows for text-classification."""
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
    return Encoded(
        [
            {**{key: encoded[key][i] for key in encoded}, "labels": labels.index(row["label"])}
            for i, row in enumerate(rows)
        ]
    )


def encode_words(rows: list[dict[str, Any]], tokenizer: Any, labels: list[str], max_length: int) -> Encoded:
    """Rows for token-classification: a word's tag on its first sub-token, -100 elsewhere."""
    encoded_rows = []
    for row in rows:
        _, tags, text, spans = words_of(row)
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        ids, done = [], set()
        for start, end in offsets:
            word = next((i for i, (s, e) in enumerate(spans) if s < end and start < e), None) if end > start else None
            ids.append(-100 if word is None or word in done else labels.index(tags[word]))
            done.add(word)
        encoded_rows.append({**encoded, "labels": ids})
    return Encoded(encoded_rows)


def main() -> None:
    """Train and save the best model by the validation rows."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    train_rows, dev_rows = read(args.train), read(args.dev)
    is_tagging = args.task == "token-classification"
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    encode: Any
    auto_class: Any
    collator: Any
    if is_tagging:
        labels = sorted({tag for row in train_rows for tag in words_of(row)[1]})
        encode, auto_class, collator = encode_words, AutoModelForTokenClassification, DataCollatorForTokenClassification
    else:
        labels = sorted({row["label"] for row in train_rows})
        encode, auto_class, collator = encode_texts, AutoModelForSequenceClassification, DataCollatorWithPadding
    torch.manual_seed(args.seed)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if args.no_dropout else {}
    model = auto_class.from_pretrained(
        args.base, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
        dtype=torch.float32, **no_dropout,
    )  # fmt: skip
    if args.freeze_word_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    trainer = Trainer(
        model=model,
        args=training_arguments(args),
        train_dataset=encode(train_rows, tokenizer, labels, args.max_length),
        eval_dataset=encode(dev_rows, tokenizer, labels, args.max_length),
        processing_class=tokenizer,
        data_collator=collator(tokenizer),
        compute_metrics=lambda found: metrics_of(found, labels, is_tagging=is_tagging),
    )
    trainer.train()
    trainer.save_model(str(args.out / "model"))


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    """The settings of a fine-tune job, in transformers' own words."""
    return TrainingArguments(
        output_dir=str(args.out / "checkpoints"),
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=64,
        weight_decay=0.01,
        warmup_steps=0.1,
        train_sampling_strategy=args.order,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        logging_steps=10,
        seed=args.seed,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )


def metrics_of(found: Any, labels: list[str], *, is_tagging: bool) -> dict[str, float]:
    """F1 by which the best epoch is chosen: macro over the classes, or of whole entities."""
    predicted, expected = np.argmax(found.predictions, axis=-1), found.label_ids
    if not is_tagging:
        return {"f1": f1_score(expected, predicted, average="macro", zero_division=0)}
    pairs = [
        ([labels[i] for i in e[e != -100]], [labels[i] for i in p[e != -100]])
        for e, p in zip(expected, predicted, strict=True)
    ]
    return {"f1": entity_f1([pair[0] for pair in pairs], [pair[1] for pair in pairs], zero_division=0)}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True, choices=["text-classification", "token-classification"])
    for name in ("base", "train", "dev", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--order", default="group_by_length", choices=["group_by_length", "random"])
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--freeze-word-embeddings", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
