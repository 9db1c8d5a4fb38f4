"""Shared parts of the methods for transformers: the recorded forward pass, attention maps, relevance."""
