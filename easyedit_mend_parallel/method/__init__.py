"""MEND: turns token rows into low-rank updates, of one request or many. Writes nothing."""
