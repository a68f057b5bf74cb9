"""Checks that `make check` runs over the source tree."""
