"""The bridge to EasyEdit: the only folder that knows EasyEdit, and it computes nothing.

EasyEdit is never imported from here; its modules are met when they have been imported.
"""
