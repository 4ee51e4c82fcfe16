"""What a setting may be, said once, where it is declared.

Here: ranges and choices as annotations of dataclass fields, and the check of them. Not here: the
settings themselves.
"""
