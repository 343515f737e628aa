"""The product's programs as processes: forked from one that has imported them, or executed."""
