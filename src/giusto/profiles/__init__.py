"""Machines in numbers: what a step costs, how much KV memory there is, how that was measured.

`load` reads a built-in profile or a JSON file, `roofline` makes one from a data sheet, `fit` from
timed steps. The simulator's hardware, and nothing that a policy sees. Knows core only.
"""
