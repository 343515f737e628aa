"""The queue: how many tasks wait on each lane, how fast they are done, and the place of one of them."""
