"""Rewards in other processes and machines.

Here: the server, its client, what they say to each other, judges behind a chat interface. Not here:
scores themselves.
"""
