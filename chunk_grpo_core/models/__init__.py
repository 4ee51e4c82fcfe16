"""Models as policies, a folder for each family.

Here: loading, and what families share. Not here: rollouts, training, rewards.
"""
