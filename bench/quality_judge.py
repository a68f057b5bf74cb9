"""Test metrics of a saved classifier, one JSON object on standard output; the same code for every model.

`python -m bench.quality_judge --task … --model DIR --test FILE`; each row alone, so no padding has a say.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from bench.quality_script import encode_words, read, words_of


def main() -> None:
    """Judge one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = read(args.test)
    judge = _entities if args.task == "token-classification" else _texts
    print(json.dumps(judge(rows, tokenizer, args)))


def _texts(rows: list[dict[str, Any]], tokenizer: Any, args: argparse.Namespace) -> dict[str, float]:
    model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
    predicted = []
    for row in rows:
        inputs = tokenizer(row["text"], truncation=True, max_length=args.max_length, return_tensors="pt")
        with torch.no_grad():
            predicted.append(model.config.id2label[int(model(**inputs).logits.argmax())])
    expected = [row["label"] for row in rows]
    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "f1_macro": float(f1_score(expected, predicted, average="macro", zero_division=0)),
    }


def _entities(rows: list[dict[str, Any]], tokenizer: Any, args: argparse.Namespace) -> dict[str, float]:
    model = AutoModelForTokenClassification.from_pretrained(args.model).eval()
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    known = [*names, *sorted({tag for row in rows for tag in words_of(row)[1]} - set(names))]
    expected, predicted = [], []
    for encoded in encode_words(rows, tokenizer, known, args.max_length).rows:
        labels = encoded.pop("labels")
        inputs = {key: torch.tensor([value]) for key, value in encoded.items()}
        with torch.no_grad():
            best = model(**inputs).logits[0].argmax(dim=-1).tolist()
        scored = [i for i, label in enumerate(labels) if label != -100]
        expected.append([known[labels[i]] for i in scored])
        predicted.append([names[best[i]] for i in scored])
    return {"f1": float(entity_f1(expected, predicted, zero_division=0))}


if __name__ == "__main__":
    main()
