"""A FLUX checkpoint on disk: its files, the fast reader of its weights, and the pipeline that is made of them.

`loading` is the entry. `weight_reader` needs torch alone and starts before diffusers is imported; `assembly` builds
modules from what it read. Whatever they do not cover is loaded by diffusers' `from_pretrained`.
"""
