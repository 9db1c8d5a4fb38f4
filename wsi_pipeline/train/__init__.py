"""Training: one MIL model a fold and seed, each with the predictions on the slides that it has not seen."""
