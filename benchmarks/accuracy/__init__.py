"""Accuracy against bytes: evaluation, operating points, comparisons, adapters, progressive answers.

Never imports the report or a command.
"""
