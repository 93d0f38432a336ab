"""The gRPC front: RPCs, streams, refusals, access, limits.

Never touches a network or a tensor: it asks the engine.
"""
