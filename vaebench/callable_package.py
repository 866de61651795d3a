"""Make a package a function too: `vaebench.train(...)` beside `import vaebench.train.session`."""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["CallablePackage", "make_callable"]


class CallablePackage(ModuleType):
    """A package that calls the function of its name in `vaebench.notebook`, which is imported on first use.

    An attribute `vaebench.train` can be one object only, and importing a module of the package makes it the package.
    """

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""
        return getattr(importlib.import_module("vaebench.notebook"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.function)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **settings)


def make_callable(package: str) -> None:
    """Make an imported package a `CallablePackage`."""
    sys.modules[package].__class__ = CallablePackage
