"""The bridge to EasyEdit: the only folder that knows EasyEdit. It computes nothing.

It does not import EasyEdit by itself; it works on EasyEdit's modules after they were imported.
"""
