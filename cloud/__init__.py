"""The service: packets (or image files) → CLIP answers. `engine` knows no transport, `server` knows no tensors."""
