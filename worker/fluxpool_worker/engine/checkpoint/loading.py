"""Loading a FLUX checkpoint: which folder, which dtypes, which device, and what to say when it cannot be done.

It owns everything up to a pipeline that is ready to be called; it must not know about jobs. Modules are loaded in
their final dtype and never cast afterwards: a later cast would also take the weights that transformers keeps in
float32 on purpose (T5's `wo`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

import structlog
import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend
from transformers.utils import logging as transformers_logging

from fluxpool_contract.families import Family
from fluxpool_worker.engine.checkpoint.assembly import AssemblyError, assemble, why_not_assembled
from fluxpool_worker.engine.checkpoint.families import ForeignModelError, check_pipeline, family_of
from fluxpool_worker.engine.checkpoint.offloading import offload, why_offload
from fluxpool_worker.engine.checkpoint.weight_files import INDEX_FILE, WEIGHTED_PARTS, weight_problems
from fluxpool_worker.engine.checkpoint.weight_reader import WeightReader, WeightReadError
from fluxpool_worker.engine.generator import CheckpointError
from fluxpool_worker.engine.protocol import Device, EngineSpec

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

VOCABULARY_FILES: Final = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "tokenizer_2": ("tokenizer.json", "spiece.model"),
}
"""One of each must be there: without, transformers builds an empty tokenizer in silence and prompts lose all effect."""

LIBRARIES: Final = ("diffusers", "transformers")

DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

CUDNN_ATTENTION_MIN_CAPABILITY: Final = (9, 0)
"""cuDNN's attention is about twice as fast as torch's flash kernel on sm_90 and sm_100, and slower below
(pytorch#142132, transformers#48163). Where torch picks it by itself it must not be asked for by name: diffusers' way to
do that copies queries, keys and values (7 ms a forward on an H200)."""

ATTENTION_ROWS: Final = 4608
"""Text and image tokens at 1024x1024."""

_UNREADABLE: Final = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    AttributeError,
    TypeError,
    SafetensorError,
)
"""What diffusers and safetensors raise for damaged or missing files."""


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A diffusers pipeline on its device."""

    pipeline: Any
    """A `FluxPipeline`; untyped because diffusers is."""
    model: str
    """Name and revision as results report it."""
    family: Family
    folder: Path
    """The checkpoint's."""
    device: torch.device
    transformer_dtype: torch.dtype
    encoder_dtype: torch.dtype
    why_offloaded: str | None = None
    """Why weights are in host memory; None when all are on the device."""


@dataclass(frozen=True, slots=True)
class _Location:
    """Where a checkpoint's files are, and its name in results."""

    folder: Path
    model: str


def load_pipeline(spec: EngineSpec, *, reader: WeightReader | None = None) -> LoadedPipeline:
    """Load what `spec` names; a hub's token comes from the environment variable HF_TOKEN.

    `reader` has begun to read the weights of the folder that `spec` names.

    Raises `CheckpointError` with the remedy.
    """
    transformer_dtype = _dtype(spec.transformer_dtype, setting="transformer_dtype")
    encoder_dtype = _dtype(spec.encoder_dtype, setting="encoder_dtype")
    device = _device(spec.device)
    location = _locate(spec)
    family = _family(location, spec)
    _silence_progress_bars()
    why_offloaded = why_offload(spec, location.folder)
    home = device if why_offloaded is None else torch.device("cpu")
    dtypes = dict.fromkeys(WEIGHTED_PARTS, encoder_dtype) | {"transformer": transformer_dtype}
    try:
        pipeline = _assembled(location.folder, reader, dtypes=dtypes, device=home)
        if pipeline is None:
            pipeline = FluxPipeline.from_pretrained(
                str(location.folder),
                dtype={**dtypes, "default": encoder_dtype},
                # Weights go straight to the GPU; on the CPU they are where they should be already.
                device_map=home.type if home.type == "cuda" else None,
                local_files_only=True,
                # Everything else is a pickle.
                use_safetensors=True,
            )
        if why_offloaded is not None:
            log.info("weights_offloaded", device=str(device), reason=why_offloaded)
            offload(pipeline, device)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"model {spec.model!r} does not fit into the memory of {device}: {error}; "
            "use a larger GPU, keep the weights in host memory (offload), or make sure that no other process holds "
            "this one"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"model {spec.model!r}: the files in {location.folder} cannot be loaded "
            f"({type(error).__name__}: {error}); fetch the checkpoint again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    _choose_attention(pipeline, device)
    return LoadedPipeline(
        pipeline=pipeline,
        model=location.model,
        family=family,
        folder=location.folder,
        device=device,
        transformer_dtype=transformer_dtype,
        encoder_dtype=encoder_dtype,
        why_offloaded=why_offloaded,
    )


def _assembled(
    folder: Path, reader: WeightReader | None, *, dtypes: Mapping[str, torch.dtype], device: torch.device
) -> Any | None:
    """The pipeline from weights that were read ahead; None, with the reason in the log, where that cannot be."""
    if reader is None and device.type == "cuda":
        reader = WeightReader(folder, WEIGHTED_PARTS, device)
        reader.start()
    if reader is None:
        return None
    reason = why_not_assembled(folder)
    if reason is None:
        try:
            return assemble(folder, reader.tensors(), dtypes=dtypes, device=device)
        except (WeightReadError, AssemblyError) as error:
            reason = str(error)
    log.warning("weights_loaded_by_diffusers", reason=reason)
    reader.discard()
    return None


def _dtype(name: str, *, setting: str) -> torch.dtype:
    if name not in DTYPES:
        raise CheckpointError(
            f"{setting}: {name!r} is no dtype a model can be loaded in; use one of {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def _device(wanted: Device) -> torch.device:
    match wanted:
        case Device.AUTO:
            return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        case Device.CUDA:
            if not torch.cuda.is_available():
                raise CheckpointError(
                    "device: 'cuda' was requested but torch finds no CUDA device; give the worker a GPU "
                    "(nvidia.com/gpu), check its driver, or use 'auto' or 'cpu'"
                )
            return torch.device("cuda", 0)
        case Device.CPU:
            return torch.device("cpu")
        case _:
            assert_never(wanted)


def _locate(spec: EngineSpec) -> _Location:
    if not spec.model.strip():
        raise CheckpointError(
            "model is empty; name a checkpoint folder, or a model id such as black-forest-labs/FLUX.1-dev"
        )
    folder = Path(spec.model).expanduser()
    if folder.exists():
        try:
            return _local(folder, spec)
        except OSError as error:
            raise CheckpointError(
                f"model {spec.model!r}: {error.filename} cannot be read ({error.strerror}); let the worker's user read "
                "the whole folder"
            ) from error
    if folder.is_absolute() or spec.model.startswith((".", "~")) or spec.model.count("/") > 1:
        raise CheckpointError(
            f"model {spec.model!r}: there is no such folder; mount the checkpoint there, or name a model id "
            "such as black-forest-labs/FLUX.1-dev"
        )
    return _from_hub(spec)


def _local(folder: Path, spec: EngineSpec) -> _Location:
    index = folder / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(
            f"model {spec.model!r}: {INDEX_FILE} is missing; name the folder of a whole diffusers checkpoint "
            "(not a single .safetensors file or a subfolder), and check that its download has ended"
        )
    if spec.revision is not None:
        log.warning("model_revision_ignored", model=spec.model, revision=spec.revision, reason="the model is a folder")
    _check_files(folder, _read_index(index, spec), spec)
    return _Location(folder=folder, model=folder.resolve().name)


def _from_hub(spec: EngineSpec) -> _Location:
    """Fetch the index first, so that a wrong model is refused before its weights are downloaded."""
    try:
        index = _read_index(
            Path(hf_hub_download(spec.model, INDEX_FILE, revision=spec.revision, local_files_only=spec.offline)), spec
        )
        folder = Path(
            FluxPipeline.download(
                spec.model, revision=spec.revision, local_files_only=spec.offline, use_safetensors=True
            )
        )
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"model {spec.model!r}: {_hub_problem(error, spec)}") from error
    _check_files(folder, index, spec)
    # The snapshot's folder is named by its commit, which stays exact when the revision is a branch that moves.
    return _Location(folder=folder, model=f"{spec.model}@{folder.name}")


def _hub_problem(error: Exception, spec: EngineSpec) -> str:
    """What went wrong with a model id, and the remedy; the order is from the narrow class to the wide."""
    at_revision = f" at revision {spec.revision!r}" if spec.revision is not None else ""
    match error:
        case HFValidationError():
            return "neither a folder that exists nor a model id; an id looks like black-forest-labs/FLUX.1-dev"
        case GatedRepoError():
            return "access is gated; accept the model's licence on its page and set HF_TOKEN to a token of that account"
        case LocalEntryNotFoundError() if spec.offline:
            return (
                f"offline and not whole in the local cache{at_revision}; download it once while online, name a "
                "folder, or allow downloads"
            )
        case LocalEntryNotFoundError():
            return (
                f"the hub cannot be reached and the local cache lacks it; check the network, or name a folder ({error})"
            )
        case RevisionNotFoundError():
            return f"there is no revision {spec.revision!r}; name a branch, tag or commit of the model"
        case RepositoryNotFoundError():
            return (
                "there is no such model, or it is private; check its name, or set HF_TOKEN to a token that may read it"
            )
        case EntryNotFoundError():
            return f"{INDEX_FILE} is missing{at_revision}; name a model in diffusers' format"
        case _:
            return f"the download failed ({type(error).__name__}: {error}); check the network, the disk and HF_TOKEN"


def _read_index(index: Path, spec: EngineSpec) -> dict[str, Any]:
    """The content of model_index.json, once it is known to be that of a FLUX text-to-image pipeline."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"model {spec.model!r}: {INDEX_FILE} is not JSON ({error}); fetch it again") from error
    try:
        check_pipeline(content)
    except ForeignModelError as error:
        raise CheckpointError(f"model {spec.model!r}: {INDEX_FILE} {error}") from error
    index_of: dict[str, Any] = content
    for part, value in index_of.items():
        # diffusers would look for any other library among the checkpoint's own files, and run it.
        if isinstance(value, list) and value[:1] not in ([None], *([library] for library in LIBRARIES)):
            raise CheckpointError(
                f"model {spec.model!r}: {INDEX_FILE} takes {part!r} from {value[:1]}; only parts of "
                f"{' and '.join(LIBRARIES)} are loaded, never code that comes with a checkpoint"
            )
    return index_of


def _family(location: _Location, spec: EngineSpec) -> Family:
    try:
        return family_of(location.folder, name=location.model)
    except ForeignModelError as error:
        raise CheckpointError(f"model {spec.model!r}: {location.folder.name} {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"model {spec.model!r}: {location.folder}/transformer/config.json cannot be read "
            f"({type(error).__name__}); fetch the checkpoint again"
        ) from error


def _check_files(folder: Path, index: dict[str, Any], spec: EngineSpec) -> None:
    """Refuse a checkpoint whose parts are not all there, where loading it would not."""
    # Parts are written as [library, class]; an optional part that is absent as [null, null].
    parts = [name for name, value in index.items() if isinstance(value, list) and value[:1] != [None]]
    lost = [f"{part}/" for part in parts if not (folder / part).is_dir()]
    for part, names in VOCABULARY_FILES.items():
        if f"{part}/" not in lost and not any((folder / part / name).is_file() for name in names):
            lost.append(" or ".join(f"{part}/{name}" for name in names))
        if f"{part}/" not in lost and not (folder / part / "tokenizer_config.json").is_file():
            lost.append(f"{part}/tokenizer_config.json")
    if lost:
        raise CheckpointError(f"model {spec.model!r}: {folder} lacks {', '.join(lost)}; fetch the checkpoint again")
    problems = [problem for part in WEIGHTED_PARTS if part in parts for problem in weight_problems(folder / part)]
    if problems:
        others = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise CheckpointError(f"model {spec.model!r}: in {folder}, {problems[0]}{others}")


def _choose_attention(pipeline: Any, device: torch.device) -> None:
    """Have cuDNN's attention where it is the fastest, and log which kernel diffusers and the fused forward run."""
    transformer, config = pipeline.transformer, pipeline.transformer.config
    rows = torch.empty(
        (1, config.num_attention_heads, ATTENTION_ROWS, config.attention_head_dim),
        dtype=transformer.dtype,
        device=device,
    )
    choice: Any = torch._fused_sdp_choice  # noqa: SLF001 - torch's answer to which kernel it would run
    kernel = SDPBackend(choice(rows, rows, rows))
    is_forced = (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= CUDNN_ATTENTION_MIN_CAPABILITY
        and kernel != SDPBackend.CUDNN_ATTENTION
    )
    if is_forced:
        transformer.set_attention_backend("_native_cudnn")
    log.info("attention_chosen", by_torch=kernel.name.lower(), cudnn_forced_in_diffusers=is_forced)


def _silence_progress_bars() -> None:
    """Bars on stderr would tear the JSON log lines apart."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
