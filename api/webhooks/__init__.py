"""Webhooks: signed deliveries of how jobs ended."""
