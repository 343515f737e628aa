"""The dispatcher: finds what endpoints are to be told, and sends it."""
