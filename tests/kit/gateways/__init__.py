"""Gateways: as processes, in the process of a test, and worlds around them."""
