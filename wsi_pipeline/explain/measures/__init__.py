"""How faithful an explanation is, and what it costs: the measures of one slide."""
