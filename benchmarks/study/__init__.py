"""The experiments of a study, one module each; `experiments` lists them.

Never imports the report: an experiment leaves points, a section shows them.
"""
