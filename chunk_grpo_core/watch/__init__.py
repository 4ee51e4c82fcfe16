"""A run made visible: pictures, plots, histories, trackers.

Here: pictures, plots, histories, trackers, the view of a run folder. Not here: anything that
changes a number of a run.
"""
