"""Latency, throughput and energy, from an image file on the device to the answer.

Never imports the report or a command.
"""
