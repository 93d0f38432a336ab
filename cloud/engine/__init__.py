"""The engine without transport and without networks: accept, decode, batch, answer.

Never imports torch, gRPC or `cloud.networks`: a runner and a set of models are handed in.
"""
