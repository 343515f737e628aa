"""Servers and files that hold what the product stores: PostgreSQL, S3, SQLite."""
