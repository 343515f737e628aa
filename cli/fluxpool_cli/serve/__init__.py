"""`fluxpool serve`: the programs of the product, and whether this installation has their packages."""
