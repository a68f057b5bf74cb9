"""The model store: immutable published sets of files, and the verified local cache. Loads no weights."""
