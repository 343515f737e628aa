"""Submissions of many requests at once."""
