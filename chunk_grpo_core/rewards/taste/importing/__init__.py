"""Ratings that a person has made elsewhere, as picks.

One file for each form: folders, notes inside picture files and beside them, Majoor's index, tables
of pairs. ``into.py`` puts them into a taste, all or nothing.
"""
