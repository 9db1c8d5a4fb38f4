"""What the token methods of transformers share: the traced forward pass, attention maps, relevance."""
