"""Maps made of the methods' maps and of the ensemble: what they agree on, and how certain they are."""
