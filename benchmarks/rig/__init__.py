"""What measurements run on: servers as processes, emulated links, counters of bytes on the wire.

Never judges an answer.
"""
