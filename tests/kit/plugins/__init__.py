"""Plugins of pytest: distribution, time limits, tests that run on a change, CPU time."""
