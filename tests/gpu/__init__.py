"""What can only be seen on a real accelerator: edits on its placements, their time and memory.

`make gpu` runs everything; `make gpu DEVICE=cpu SHAPES=tiny` is a rehearsal on a CPU.
"""
