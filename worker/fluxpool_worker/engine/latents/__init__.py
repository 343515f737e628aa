"""What denoising starts from: noise, or a picture with noise over it, and the schedule that both follow.

The step loops are elsewhere (`engine.generation`, `engine.fused`).
"""
