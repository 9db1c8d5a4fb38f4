"""Studies on public cohorts: their manifests, the runs of a study, and its runs in one table.

The graphs that compute them stand in the repository's ``workflows/``; what is pure in them stands here.
"""
