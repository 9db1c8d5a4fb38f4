"""Summary maps of several methods or members: consensus, agreement and uncertainty."""
