"""CCXT without the exchanges that nobody uses.

`import ccxt` imports every one of its hundred exchanges, and so do `ccxt.async_support` and `ccxt.pro`: 0.35 s and
75 MB in all, where one exchange takes 0.1 s and 20 MB (4.5.90). So these three packages are run as they are shipped,
but for the lines like `from ccxt.kraken import kraken`: an exchange is imported when it is first looked up, and then
stands where it always does, for whoever else uses CCXT in this process too. Where CCXT is imported already, is no
plain source, or has no such lines, it is taken as it comes.
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

_PACKAGES = frozenset({"ccxt", "ccxt.async_support", "ccxt.pro"})


class _LeanPackage(ModuleType):
    """A package that imports its exchanges when they are looked up."""

    def __getattr__(self, name: str) -> object:
        """The exchange of that name, now imported."""
        if name not in vars(self).get("_exchanges_to_import", ()):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{name}"), name)

    def __setattr__(self, name: str, value: object) -> None:
        """Put the exchange where Python puts its module, which has the same name."""
        if isinstance(value, ModuleType) and name in vars(self).get("_exchanges_to_import", ()):
            value = getattr(value, name)
        super().__setattr__(name, value)


class _LeanLoader(SourceFileLoader):
    """Runs a package without the lines that import its exchanges."""

    @cached_property
    def _lean(self) -> tuple[CodeType, frozenset[str]]:
        """The code without those lines, and the exchanges named in them. Python's cache of code has the lines."""
        tree = ast.parse(self.get_data(self.path), self.path)
        named = [(line, _exchange_imported_by(line, self.name)) for line in tree.body]
        tree.body = [line for line, exchange in named if exchange is None]
        code = compile(tree, self.path, "exec", dont_inherit=True)
        return code, frozenset(exchange for _, exchange in named if exchange is not None)

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        vars(module)["_exchanges_to_import"] = self._lean[1]
        module.__class__ = _LeanPackage
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the loader's own package
        """What is run."""
        return self._lean[0]


class _LeanFinder(MetaPathFinder):
    """Has CCXT's packages loaded by the lean loader, where they are plain source."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to load one of the packages; None for everything else."""
        if fullname not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _LeanLoader(fullname, spec.loader.path)
        return spec


def _exchange_imported_by(line: ast.stmt, package: str) -> str | None:
    """`kraken` for `from <package>.kraken import kraken`; None for any other line."""
    if not isinstance(line, ast.ImportFrom) or line.level or len(line.names) != 1:
        return None
    name = line.names[0].name
    return name if line.module == f"{package}.{name}" and line.names[0].asname is None else None


_finder = _LeanFinder()


def ccxt_module(name: str) -> ModuleType:
    """The module `ccxt` or one within it."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    return importlib.import_module(name)


def exchange_class(package: str, exchange_id: str) -> Any:
    """The class of an exchange in `ccxt.async_support` or `ccxt.pro`; None where the package has none."""
    return getattr(ccxt_module(package), exchange_id, None)
