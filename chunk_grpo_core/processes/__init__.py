"""Several processes that train together.

Here: who they are, how they join, calls in equal number. Not here: what they compute.
"""
