"""Gradients, and backward rules on a traced forward pass: layer-wise relevance propagation and DeepLIFT."""
