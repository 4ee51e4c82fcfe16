"""Configuration files (TOML): keys, reading, writing.

Here: their keys, reading, writing. Not here: loading what they name.
"""
