"""Triton's kernels compiled ahead: into a folder of the image, without a GPU, and from there into an engine's cache.

`python -m fluxpool_worker.engine.kernel_cache` compiles all kernels of FLUX.1 for the given kinds of GPU. It runs
the engine's own operations on tensors without memory, with a driver that launches nothing, so that Triton makes and
files what it would on a GPU. A worker's root is read-only, so an engine copies the folder into the cache on its mount.
What is left for a start are small C modules that belong to the node's driver. `seed_kernels` imports no torch.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

CAPABILITIES: Final = (80, 86, 89, 90, 100, 120)
"""A100, RTX 30, L4 and RTX 40, H100 and H200, B200, RTX 50."""
WIDTH: Final = 3072
HEADS, HEAD_WIDTH, ROWS, TEXT_ROWS = 24, 128, 1024, 512


def image_folder() -> Path:
    """Where an image has its kernels: beside the interpreter's packages."""
    return Path(sys.prefix, "share", "fluxpool", "kernels")


def triton_folder() -> Path:
    """Where Triton looks for kernels, and puts them."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def seed_kernels(source: Path, target: Path) -> int:
    """Copy the kernels that `target` lacks, and return how many; an engine without them compiles its own.

    Each is a folder named by what it was compiled from. It appears whole: another engine may do the same.
    """
    if not source.is_dir():
        return 0
    copied = 0
    target.mkdir(parents=True, exist_ok=True)
    for kernel in source.iterdir():
        if not kernel.is_dir() or (target / kernel.name).exists():
            continue
        staging = target / f".{kernel.name}-{os.getpid()}"
        shutil.copytree(kernel, staging)
        try:
            staging.rename(target / kernel.name)
            copied += 1
        except OSError:
            shutil.rmtree(staging)
    return copied


class _DryDriver:
    """What Triton asks of a driver, for a GPU that is not there: everything is loaded and launched, nothing runs."""

    class utils:  # noqa: N801 - Triton's name
        """Answers about the device."""

        @staticmethod
        def get_device_properties(_device: int) -> dict[str, int]:
            """Enough of everything."""
            return {"max_shared_mem": 2**18, "multiprocessor_count": 1, "warpSize": 32, "max_num_regs": 2**16}

        @staticmethod
        def load_binary(*_binary: Any) -> tuple[int, int, int, int, int]:
            """Module, function, registers, spills and threads."""
            return 1, 1, 0, 0, 1024

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        """The kind of GPU that is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """The default one."""
        return 0

    @staticmethod
    def launcher_cls(*_kernel: Any) -> Any:
        """A launcher."""
        return lambda *_arguments, **_options: None


def compile_kernels(folder: Path, capability: int) -> None:
    """Put the kernels of FLUX.1 for one kind of GPU into `folder`; call it in a process of its own.

    Triton and the environment are the process's: `TRITON_CACHE_DIR` stays set, and the driver stays replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    # They read the environment, and only this command needs them.
    import torch  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.runtime import driver  # noqa: PLC0415

    from fluxpool_worker.engine.fused.fast.choice import MIN_CAPABILITY  # noqa: PLC0415

    driver.set_active(_DryDriver(GPUTarget("cuda", capability, 32)))
    with torch.no_grad():
        for dtype in (torch.float16, torch.bfloat16):
            _forward(dtype)
        if divmod(capability, 10) >= MIN_CAPABILITY:
            _fast_forward()
        _decode()


def _empty(*shape: int, dtype: Any) -> Any:
    import torch  # noqa: PLC0415 - as above

    return torch.empty(*shape, dtype=dtype, device="meta")


def _forward(dtype: Any) -> None:
    import torch  # noqa: PLC0415 - as above

    from fluxpool_worker.engine.fused.modulation import Modulation, NormVectors  # noqa: PLC0415
    from fluxpool_worker.engine.fused.triton_operations import TritonOperations  # noqa: PLC0415
    from fluxpool_worker.engine.fused.weights import HeadNorms  # noqa: PLC0415

    operations, where = TritonOperations(), NormVectors(gate=2 * WIDTH, scale=WIDTH, shift=0)
    stream, vectors = _empty(ROWS, WIDTH, dtype=dtype), _empty(3 * WIDTH, dtype=dtype)
    modulation = Modulation(vectors=vectors, text_rows=TEXT_ROWS, text=where, image=where)
    for update in (None, stream):
        operations.add_and_norm(stream=stream, update=update, out=stream, modulation=modulation)
    norms = HeadNorms(*(_empty(2 * HEADS, HEAD_WIDTH, dtype=dtype) for _ in range(2)))
    angles = _empty(ROWS, HEAD_WIDTH // 2, dtype=torch.float32)
    packed = _empty(ROWS, 3 * WIDTH, dtype=dtype)[:, : 2 * WIDTH]
    operations.norm_and_rotate(
        packed.view(ROWS, 2 * HEADS, HEAD_WIDTH),
        norms=norms,
        cosine=angles,
        sine=angles,
        first_row=0,
        text_rows=TEXT_ROWS,
    )


def _fast_forward() -> None:
    import torch  # noqa: PLC0415 - as above

    from fluxpool_worker.engine.fused.fast.operations import ScaledRows  # noqa: PLC0415
    from fluxpool_worker.engine.fused.fast.triton_operations import TritonScaledOperations  # noqa: PLC0415
    from fluxpool_worker.engine.fused.modulation import Modulation, NormVectors  # noqa: PLC0415

    operations, where = TritonScaledOperations(), NormVectors(gate=2 * WIDTH, scale=WIDTH, shift=0)
    scales = _empty(ROWS, dtype=torch.float32)

    def scaled(columns: int) -> ScaledRows:
        return ScaledRows(_empty(ROWS, columns, dtype=torch.float8_e4m3fn), scales)

    stream, hidden = (_empty(ROWS, columns, dtype=torch.bfloat16) for columns in (WIDTH, 4 * WIDTH))
    vectors = _empty(3 * WIDTH, dtype=torch.bfloat16)
    modulation = Modulation(vectors=vectors, text_rows=TEXT_ROWS, text=where, image=where)
    for update in (None, stream):
        operations.add_norm_and_scale(
            stream=stream,
            update=update,
            out=scaled(WIDTH),
            modulation=modulation,
        )
    operations.scale_rows(attended=stream, hidden=None, out=scaled(WIDTH))
    operations.scale_rows(attended=None, hidden=hidden, out=scaled(4 * WIDTH))
    operations.scale_rows(attended=stream, hidden=hidden, out=scaled(5 * WIDTH))
    heads = _empty(ROWS, 3, HEADS, HEAD_WIDTH, dtype=torch.bfloat16)[:, 0]
    for head_scales in (None, _empty(HEADS, dtype=torch.float32)):
        operations.scale_heads(
            heads, scales=head_scales, out=_empty(ROWS, HEADS, HEAD_WIDTH, dtype=torch.float8_e4m3fn)
        )


def _decode() -> None:
    import torch  # noqa: PLC0415 - as above

    from fluxpool_worker.engine.fused.decoder import fuse_decoder  # noqa: PLC0415
    from fluxpool_worker.engine.fused.decoder_operations import TritonDecoderOperations  # noqa: PLC0415

    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            vae = flux_vae()
    finally:
        torch.set_default_dtype(torch.float32)
    fuse_decoder(vae, operations=TritonDecoderOperations())
    vae.decode(_empty(1, 16, 16, 16, dtype=torch.bfloat16), return_dict=False)


def flux_vae() -> Any:
    """A VAE of FLUX.1's shape, with new weights on torch's default device and in its default dtype."""
    from diffusers import AutoencoderKL  # noqa: PLC0415 - as above

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile for the kinds of GPU named on the command line, one process for each."""
    parser = argparse.ArgumentParser(prog="fluxpool_worker.engine.kernel_cache", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=image_folder(), help="where they go; default: %(default)s")
    parser.add_argument(
        "--capability",
        type=int,
        action="append",
        choices=CAPABILITIES,
        help="compute capability without its point, may be repeated; default: all",
    )
    wanted = parser.parse_args(arguments)
    capabilities = wanted.capability or list(CAPABILITIES)
    if len(capabilities) == 1:
        compile_kernels(wanted.folder.resolve(), capabilities[0])
        return
    for capability in capabilities:
        command = (sys.executable, "-m", "fluxpool_worker.engine.kernel_cache", "--folder", str(wanted.folder))
        subprocess.run([*command, "--capability", str(capability)], check=True)  # noqa: S603 - this very program


if __name__ == "__main__":
    main()
