"""The command line: commands, progress bars, error messages.

Here: commands, progress bars, error messages. Not here: anything that a script would call.
"""
