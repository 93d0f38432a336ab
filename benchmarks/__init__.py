"""Measures accuracy against bytes and time, always through the real edge and the real cloud."""
