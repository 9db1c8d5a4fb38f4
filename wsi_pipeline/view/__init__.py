"""What people look at: QuPath tiles with the scores, a script that loads them, and one self-contained report."""
