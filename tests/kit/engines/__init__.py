"""Real engine processes, and the tiny checkpoint that they load."""
