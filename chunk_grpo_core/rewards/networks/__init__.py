"""Rewards that are neural networks.

Here: one file each, and what they share. Not here: where their weights come from
(``rewards/files.py``).
"""
