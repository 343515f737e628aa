"""What the parts of Fluxpool say to each other: messages, headers, topics, settings.

No I/O, and no other Fluxpool package.
"""
