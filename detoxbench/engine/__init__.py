"""Texts out of a model: generated from keyed noise, and read for their likelihood, whatever the batch."""
