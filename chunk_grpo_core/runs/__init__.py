"""A run: what it loads, the experiment around a training, what it leaves behind.

Here: loading, starting, resuming, measuring before and after, results. Not here: commands.
"""
