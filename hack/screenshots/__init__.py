"""`make screenshots`: the pictures of the page in the documentation, taken of the page on real parts."""
