"""Configuration files (TOML).

Here: their keys, reading, writing. Not here: loading what they name.
"""
