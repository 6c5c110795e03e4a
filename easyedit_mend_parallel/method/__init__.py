"""MEND: token rows in, low-rank updates out; one request or many. Writes nothing."""
