"""Runs for others: packed, and verified where they arrive."""
