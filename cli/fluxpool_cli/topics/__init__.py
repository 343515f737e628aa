"""`fluxpool topics`: create the topics, and compare those that are there with what the product needs."""
