"""Alembic migrations, run by `ondol db upgrade` and by `ondol up`."""
