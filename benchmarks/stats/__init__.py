"""Statistics as plain functions of numbers: intervals, tests, hulls, critical rates.

Never imports another room of the benchmarks; no files, no networks.
"""
