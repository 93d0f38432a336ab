"""Months unattended: sources, spool, courier, sinks, rate control, answers while the link is down.

Never imports a command line.
"""
