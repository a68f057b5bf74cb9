"""The command line: examples that parse, completion, watching on a terminal and in a pipe, doctor, collection."""
