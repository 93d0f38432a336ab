"""Labelled images, captions and photographs, and their canonical views.

Never imports a codec or a judge: a data set does not know what is done with it.
"""
