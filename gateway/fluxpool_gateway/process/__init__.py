"""The processes of a gateway: servers and the projector."""
