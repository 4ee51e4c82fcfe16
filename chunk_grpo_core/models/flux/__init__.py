"""FLUX.1 from disk, on diffusers.

Here: finding, reading and quantising its files, prompts as it reads them, the policy. Not here:
what other families share.
"""
