"""Several processes that train one adapter together.

Here: who they are, how they join, calls in equal number. Not here: what they compute.
"""
