"""The training loop and its settings.

Here: TrainConfig; sample, score, compare, update; optimiser, self-test, checkpoints, events. Not
here: how a run is laid out on disk, or who listens.
"""
