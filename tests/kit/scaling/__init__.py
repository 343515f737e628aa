"""Pools, the lag of their lanes, and benches for the operator."""
