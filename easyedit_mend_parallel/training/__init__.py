"""Trains the hypernetwork: parts for any training loop, and this package's own trainer."""
