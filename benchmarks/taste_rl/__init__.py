"""Training on a fitted taste: does the true taste rise, and what becomes of captions?"""
