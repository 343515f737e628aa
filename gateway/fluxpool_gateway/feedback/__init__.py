"""Ratings and comparisons of images: taken by HTTP, kept in Kafka, shown as means and win rates, and exported."""
