"""Real sentences for the tests of embedding, and texts that break careless code."""

from __future__ import annotations

from ondol.demo.texts import read_pairs

ENGLISH = [pair.first for pair in read_pairs("en")[:12]]
KOREAN = [pair.first for pair in read_pairs("ko")[:12]]

COMPANY = [
    " ".join(pair.first for pair in read_pairs(language)[start : start + 1 + start % 2])
    for language in ("en", "ko")
    for start in range(12, 42)
]
"""60 texts of very different lengths."""

ODD = {
    "null character": "before\u0000after",
    "only a null character": "\u0000",
    "emoji": "warm 🔥 stone 👩🏽‍🚀",
    "a lone combining mark": "\u0301",
    "decomposed Hangul": "\u110b\u1169\u11ab\u1103\u1169\u11af",
    "Hangul compatibility jamo": "ㅋㅋㅋ ㅠㅠ",
    "a very long word": "온" * 300 + "dol" * 300,
    "spaces": "   ",
    "line breaks": "\n\t\r\n",
    "spaces around": "  two  spaces  ",
    "right to left": "\u202eabc\u202c שלום",
    "byte order mark": "\ufeffhello",
    "outside the basic plane": "𠀀𝔘",
    "special tokens by name": "[CLS] hello [SEP] </s> <pad>",
    "full width": "ＡＢＣ　１２３",
}
