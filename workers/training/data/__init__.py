"""Training data: reads the user's files as they are, says what is wrong with them, and gives examples to train from.

Imports neither torch nor transformers: the check of the data runs without them.
"""
