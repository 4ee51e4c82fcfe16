"""The method: pure mathematics, the protocols it needs, and the settings that name it.

Here: time grids, rules, rollouts, curves, chunk plans, advantages, objectives, their streamed
gradient, Policy and Reward. Not here: files, clocks, optimisers, models.
"""
