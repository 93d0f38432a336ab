"""Generated protobuf and gRPC stubs of `proto/thinwire/v1`; regenerate with `python scripts/generate_stubs.py`."""
