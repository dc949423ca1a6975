"""Boards as text, a file a format. Names in them are untrusted, and each format escapes them in its own way."""
