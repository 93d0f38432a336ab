"""`make demo`: a server, an edge and real photographs on this machine, and the page that shows them.

Never imported by another room.
"""
