"""Stored points and what is read off them: rows, groups, curves, savings, tables.

Never measures: it works on files that a measurement left.
"""
