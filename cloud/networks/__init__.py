"""What runs on the device: CLIP, decoders, their backends and precisions, and how they are loaded and cached.

Never imports gRPC or the front.
"""
