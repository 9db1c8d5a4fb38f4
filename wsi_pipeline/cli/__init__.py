"""The command line ``wsi``."""
