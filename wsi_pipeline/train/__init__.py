"""Training: one MIL model per fold and seed, each with its predictions on the slides held out from it."""
