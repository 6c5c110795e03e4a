"""The model called on requests, and what its layers see: batches, capture, the trunk.

Changes no weight, and knows nothing of hypernetworks.
"""
