"""What tenants used: counted by the hour while results are projected, and shown to each tenant for itself."""
