"""Finished runs: read, aggregated, compared, ranked and written as tables. Nothing here imports torch."""
