"""The service: turns packets (or image files) into CLIP answers. `engine` knows no transport, `server` knows no tensors."""
