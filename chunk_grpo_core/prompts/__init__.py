"""Prompts, from a file to the lists that train and measure.

Here: reading files, wildcards, the split into training and held-out prompts. Not here: text
encoders, which belong to a model.
"""
