"""Views of the results: QuPath tiles with the scores, a script that loads them, and a self-contained HTML report."""
