"""How good edits are: facts with the texts that judge them, and the measures.

Knows how a model is called and how an update is attached; changes no weight.
"""
