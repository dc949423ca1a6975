"""Boards as JSON: every field of `tables.Board`, for programs."""

from __future__ import annotations

import json

import msgspec

from detoxbench.results.tables import Board


def render(board: Board) -> str:
    """The whole board, shown or not."""
    return json.dumps(msgspec.to_builtins(board), indent=1, ensure_ascii=False) + "\n"
