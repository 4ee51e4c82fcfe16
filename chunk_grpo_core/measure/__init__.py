"""Fair measurements of a policy.

Here: held-out prompts, fixed seeds, paired differences and their intervals. Not here: drawing
them.
"""
