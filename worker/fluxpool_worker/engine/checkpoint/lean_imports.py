"""Imports of diffusers and transformers without torch's compiler and distributed tensors, which an engine never uses.

Both import them for decorators and `isinstance` checks alone: a fifth of the CPU time before a model is ready. For
engine processes only: they compile nothing with `torch.compile`, and spread no model over processes.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest import mock

import torch.distributed

COMPILER: Final = "torch._dynamo"
WITHOUT_COMPILER: Final = f"{COMPILER}._trace_wrapped_higher_order_op"
"""Its submodule that transformers imports, and that needs no other."""


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import diffusers and transformers within.

    transformers decides once, at its import, that torch cannot distribute, as in builds of torch without it. The
    compiler is imported when something needs more of it than its decorators.
    """
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _LazyCompiler()
        sys.meta_path.insert(0, _Submodules())
    with mock.patch.object(torch.distributed, "is_available", return_value=False):
        yield


class _LazyCompiler(ModuleType):
    """What is asked of the compiler where nothing is compiled; anything else imports the real one."""

    def __init__(self) -> None:
        super().__init__(COMPILER)
        self.__path__: list[str] = []
        self.allow_in_graph = self.assume_constant_result = self.disable = _unchanged
        # diffusers asks whether a module of a pipeline was compiled.
        self.eval_frame = SimpleNamespace(OptimizedModule=_Compiled)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real_compiler(), name)


class _Submodules(MetaPathFinder):
    """Finds the compiler's submodules while the lazy one is there."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if not fullname.startswith(f"{COMPILER}.") or not isinstance(sys.modules.get(COMPILER), _LazyCompiler):
            return None
        if fullname == WITHOUT_COMPILER:
            file = Path(torch.__file__).parent / "_dynamo" / f"{WITHOUT_COMPILER.rpartition('.')[2]}.py"
            return importlib.util.spec_from_file_location(fullname, file)
        _real_compiler()
        # It has most likely imported the submodule, which must not be there twice.
        return ModuleSpec(fullname, _Imported()) if fullname in sys.modules else importlib.util.find_spec(fullname)


class _Imported(Loader):
    """Loads a module that was imported while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Compiled:
    """No module is an instance of it."""


def _unchanged(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """Any decorator of the compiler, with or without arguments."""
    return function or _unchanged


def _real_compiler() -> ModuleType:
    if isinstance(sys.modules.get(COMPILER), _LazyCompiler):
        del sys.modules[COMPILER]
    return importlib.import_module(COMPILER)
