"""Files that are whole or not there: writing them, lines of records, digests that tell damage, hashes of large ones."""
