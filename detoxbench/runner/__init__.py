"""Runs from overrides to a folder of results: composed, planned, done stage by stage, searched over."""
