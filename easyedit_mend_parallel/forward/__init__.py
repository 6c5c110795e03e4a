"""Calls the model on requests and captures its layers' inputs: batches, capture, the trunk.

Changes no weight, and knows nothing of hypernetworks.
"""
