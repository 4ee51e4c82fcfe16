"""Files that are never half written, and names that lead nowhere else.

Here: writing a file in one piece, and paths that somebody else names. Not here: what stands in a
file.
"""
