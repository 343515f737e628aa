"""What tests of all folders share: real parts and ways to wait for them."""
