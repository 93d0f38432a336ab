"""What is compared: image codecs, the operating points of families and codecs, and how a command line names them.

Never measures anything.
"""
