"""Studies on public cohorts: their manifests, the runs of a study, and a summary table of its runs.

The Snakemake workflows that compute them are in the repository's ``workflows/`` and use this package.
"""
