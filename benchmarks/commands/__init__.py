"""The commands of `thinwire-bench` that put several rooms together, and where their output goes.

Never holds a formula: commands parse, call and print.
"""
