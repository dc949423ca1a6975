"""Files that are written whole or not at all: writing, lines of records, digests that show damage, hashes."""
