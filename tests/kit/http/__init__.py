"""Clients and servers of HTTP that are not the product's: a browser, a token issuer, receivers of webhooks."""
