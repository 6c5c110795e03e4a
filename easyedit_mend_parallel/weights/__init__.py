"""Where a weight is stored and how it changes: targets, placements, updates, stores, the ledger.

Knows no requests, no tokens and no hypernetworks.
"""
