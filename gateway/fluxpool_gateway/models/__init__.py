"""The models that this release generates with, as clients list them."""
