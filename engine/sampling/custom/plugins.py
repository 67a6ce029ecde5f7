"""Fills a registry: what is built in, what installed packages announce, and the plugins that were named."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import ConfigError
from engine.sampling.custom.builtin import register_builtin
from engine.sampling.custom.registry import Registry

PROCESSOR_GROUP = "inflight.logits_processors"
"""Entry points that are processors: the name that requests use = "module:class or function"."""
CRITERION_GROUP = "inflight.stopping_criteria"


def build_registry(plugins: Sequence[str] = ()) -> Registry:
    """plugins: names of modules, or paths of files that end in .py, whose register(registry) is called.

    Raises ConfigError: one cannot be imported, or registers what cannot be.
    """
    registry = Registry()
    register_builtin(registry)
    for group, add in (
        (PROCESSOR_GROUP, registry.add_logits_processor),
        (CRITERION_GROUP, registry.add_stopping_criterion),
    ):
        for entry_point in entry_points(group=group):
            add(entry_point.name, _load(entry_point))
    load_plugins(registry, plugins)
    return registry


def load_plugins(registry: Registry, plugins: Sequence[str]) -> None:
    """See build_registry."""
    for plugin in plugins:
        register = getattr(_import(plugin), "register", None)
        if not callable(register):
            raise ConfigError(f"plugin {plugin!r}: has no function register(registry)")
        try:
            register(registry)
        except ConfigError as error:
            raise ConfigError(f"plugin {plugin!r}: {error}") from error
        except Exception as error:
            raise ConfigError(f"plugin {plugin!r}: register() failed: {_words(error)}") from error


def _import(plugin: str) -> ModuleType:
    try:
        return _import_file(Path(plugin)) if plugin.endswith(".py") else importlib.import_module(plugin)
    except Exception as error:
        raise ConfigError(f"plugin {plugin!r}: cannot be imported: {_words(error)}") from error


def _import_file(path: Path) -> ModuleType:
    """As a module of a name that no other module has, in sys.modules because dataclasses look there."""
    name = f"inflight_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load(entry_point: EntryPoint) -> Any:
    try:
        return entry_point.load()
    except Exception as error:
        where = f"entry point {entry_point.name!r} of {entry_point.group}, {entry_point.value}"
        raise ConfigError(f"{where}: cannot be loaded: {_words(error)}") from error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
