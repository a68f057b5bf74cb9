"""Flower, the dashboard of the Celery nodes, as Ondol runs it: one gate, read-only, and without a text."""
