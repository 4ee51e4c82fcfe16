"""Low-rank adapters and the files they are saved in.

Here: the adapter on a module, the layouts of LoRA files, FLUX.1's layer names. Not here: what an
adapter is trained for.
"""
