"""The commands of `thinwire-edge`: options in, exit codes out.

Never holds what a library user would need.
"""
