"""Ondol's tests: folders name promises, markers name the cost."""
