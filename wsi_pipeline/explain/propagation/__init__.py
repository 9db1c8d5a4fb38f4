"""Backward rules through a traced forward pass: layer-wise relevance propagation and DeepLIFT."""
