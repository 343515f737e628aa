"""LoRA adapters: files by their names, what is in them, and merging them into a loaded transformer and out again.

`merging` is the entry. An adapter is merged into the weights before a job, because then every step is as fast as
without; adapters beside the weights would cost each step and take the job out of the fused forward.
"""
