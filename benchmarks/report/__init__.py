"""The report of a study, one module a section, and its pictures.

Never measures: it is made from stored points alone.
"""
