"""Code shared by the tests of all folders: real components and ways to wait for them."""
