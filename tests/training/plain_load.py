"""Loads a version's folder with plain transformers, where none of our packages can be imported; prints logits."""

import json
import sys

sys.path = [entry for entry in sys.path if "site-packages" in entry or "python3" in entry]
# An editable install is found by a hook and not by the path.
sys.meta_path = [
    finder for finder in sys.meta_path if "editable" not in f"{finder} {getattr(finder, '__module__', '')}"
]
folder, auto_class, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for package in ("ondol", "workers", "models_store"):
    try:
        __import__(package)
    except ImportError:
        continue
    raise SystemExit(f"{package} can be imported here, so this shows nothing")

import torch  # noqa: E402
import transformers  # noqa: E402

tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = getattr(transformers, auto_class).from_pretrained(folder)
with torch.no_grad():
    logits = [model(**tokenizer(text, return_tensors="pt", truncation=True)).logits.tolist() for text in texts]
print(json.dumps({"logits": logits, "labels": [model.config.id2label[i] for i in range(model.config.num_labels)]}))
