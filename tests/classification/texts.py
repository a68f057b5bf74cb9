"""Texts that careless code gets wrong, short and long."""

from __future__ import annotations

SHORT = [
    "Minji Kim of Seoul reset the password of my account?",
    "온돌은 서울 집 전체를 따뜻하게 한다.",
    "👋🏽 New York 🔥 flame zebra ξ ünïcode Busan!",
    "New-York  Seoul\n\nBusan",
    "a",
    "   ",
    "\u110b\u1169\u11ab of e\u0301t\u00e9 ＡＢＣ [SEP]",
]
LONG = " ".join(["The fire burns in New York 🔥 서울 Minji."] * 5)
PAIRS = [
    {"text": "How do I reset it?", "text_pair": "Ask the people in Busan."},
    {"text": "온돌은 불을 아래에서 때어", "text_pair": "집 전체를 따뜻하게 한다."},
    {"text": "a", "text_pair": LONG},
    {"text": LONG, "text_pair": "a queue remembers"},
    {"text": LONG, "text_pair": LONG + LONG},
]
