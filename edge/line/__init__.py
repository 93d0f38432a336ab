"""One question, one answer: the clients, the connection, results and errors as they cross the wire.

Never imports the spool or a command line.
"""
