"""The embedded tiny FLUX and its world.

Here: the model, its captions, renderer and verifiable reward, and how it was pre-trained. Not here:
anything that a real model needs.
"""
