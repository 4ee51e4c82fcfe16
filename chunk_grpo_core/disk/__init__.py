"""Files that are never half written.

Here: writing a file in one piece. Not here: what stands in it.
"""
