"""Upper bounds on output length, learned from finished requests."""
