"""Runs.

Here: what a run loads, the experiment around a training, what it leaves behind. Not here:
commands.
"""
