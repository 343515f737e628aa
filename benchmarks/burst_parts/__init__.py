"""Parts of the benchmark programs in the folder above."""
