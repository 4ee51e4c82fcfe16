"""Fair measurements: held-out prompts, fixed seeds, paired differences.

Here: held-out prompts, fixed seeds, paired differences and their intervals. Not here: drawing
them.
"""
