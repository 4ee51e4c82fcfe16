"""The method: pure mathematics and the protocols it needs.

Here: time grids, rules, rollouts, curves, chunk plans, advantages, objectives, their streamed
gradient, Policy and Reward. Not here: files, clocks, optimisers, models.
"""
