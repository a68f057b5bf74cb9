"""The device process: owns one device and its warm pool, and turns packed batches into arrays.

A program of its own (`python -m workers.device`); see `docs/device-protocol.md`. Nothing else of ours may import it.
"""
