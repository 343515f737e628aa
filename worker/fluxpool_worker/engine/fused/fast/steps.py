"""Which denoising steps the fast way computes; the others go on with the velocity of the step before.

The schedule depends on the number of steps alone, so that the time is known in advance and the same task gives the same
images. Knows nothing of tensors.
"""

from typing import Final

FEWEST_STEPS: Final = 9
"""Below, every step is computed: models of few steps (FLUX.1-schnell) have none to spare."""


def computed_steps(steps: int) -> frozenset[int]:
    """The indices of the steps that are computed: half of them, rounded up; the first and the last always.

    The first fifth is dense, because the composition is decided there (as in MagCache's and TeaCache's retention); the
    others are spread evenly up to the last. At most two steps in a row are left out.
    """
    if steps < FEWEST_STEPS:
        return frozenset(range(steps))
    dense = -(-steps // 5)
    others = (steps + 1) // 2 - dense
    last_dense = dense - 1
    spread = ((steps - dense) * number // others for number in range(1, others + 1))
    return frozenset(range(dense)) | {last_dense + distance for distance in spread}
