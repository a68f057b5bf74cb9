"""Tasks whose versions are loaded with a head; imports no torch."""

TEXT_TASK = "text-classification"
TOKEN_TASK = "token-classification"
HEAD_TASKS = frozenset({TEXT_TASK, TOKEN_TASK})
