"""Measures of an explanation of one slide: faithfulness, sanity checks and cost."""
