"""Prompts, from a file to a list of examples.

Here: reading files, wildcards, the split into training and held-out prompts. Not here: text
encoders, which belong to a model.
"""
