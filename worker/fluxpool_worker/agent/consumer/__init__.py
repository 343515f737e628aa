"""Membership in the consumer groups of the lanes: assignments, records and committed offsets."""
