"""The command line.

Here: commands, progress bars, error messages. Not here: anything that a script would call.
"""
