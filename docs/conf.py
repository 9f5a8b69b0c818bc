"""Settings of the documentation site. `make docs` builds it; every warning is an error, so is a missing docstring."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from flax import nnx
from sphinx.addnodes import desc_signature
from sphinx.ext.autodoc.mock import mock
from sphinx.util.inspect import signature, stringify_signature

import jaxprune

project = "jaxprune"
author = "the jaxprune developers"
html_title = "jaxprune"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "force"  # of notebooks; other pages' blocks are run by tests/test_docs.py
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds for a cell
exclude_patterns = ["_*"]
html_theme = "furo"
html_show_copyright = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.strikethrough"]
autodoc_mock_imports = ["torch", "safetensors"]  # large, and needed by jaxprune.convert only
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
default_role = "code"
# Signatures name types of other projects, whose pages are not fetched while building. Ours must resolve.
nitpick_ignore_regex = [("py:class", r"(jax|jaxlib|jaxtyping|flax|numpy|os|pathlib|collections\.abc)\..+|ndarray")]


def _ours(value: Any) -> bool:
    """Classes and functions, compiled ones too; no constants."""
    named = callable(value) and hasattr(value, "__name__")
    return named and (getattr(value, "__module__", None) or "").startswith("jaxprune")


def _public_modules() -> Iterator[Any]:
    """Each package, and each module that its `__all__` names."""
    inside = [info.name for info in pkgutil.iter_modules(jaxprune.__path__, "jaxprune.") if info.ispkg]
    for name in dict.fromkeys([*inside, "jaxprune.convert"]):  # a checkout has `convert` beside the others
        package = importlib.import_module(name)
        yield package
        modules = {info.name for info in pkgutil.iter_modules(package.__path__)}
        yield from (importlib.import_module(f"{name}.{module}") for module in package.__all__ if module in modules)


def _without_docstring(value: Any, name: str) -> Iterator[str]:
    """The value and its public methods and properties; a method may inherit its docstring, a class may not."""
    own = value.__doc__ or ""
    if not own or own.startswith(f"{value.__name__}("):  # a dataclass without one gets its signature
        yield name
    for member, raw in vars(value).items() if inspect.isclass(value) else ():
        is_method = inspect.isfunction(raw) or isinstance(raw, property | classmethod | staticmethod)
        if is_method and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
            yield f"{name}.{member}"


def _missing() -> Iterator[str]:
    for name in jaxprune.__all__:
        if _ours(value := getattr(jaxprune, name)):
            yield from _without_docstring(value, f"jaxprune.{name}")
    for module in _public_modules():
        if not module.__doc__:
            yield module.__name__
        exported = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in exported:
            value = getattr(module, name, None)
            if _ours(value) and (value.__module__ == module.__name__ or hasattr(module, "__path__")):
                yield from _without_docstring(value, f"{module.__name__}.{name}")


def _constructor(app, what, name, value, options, shown, returned):
    """The signature of a class's own constructor, which the metaclass of nnx hides."""
    if what == "class" and issubclass(value, nnx.Module):
        own = signature(value.__init__, bound_method=True)
        return stringify_signature(own, show_return_annotation=False, unqualified_typehints=True), None
    return None


def _short_types(app, doctree):
    """Types as the code writes them: `Float[Array, "b n"]`."""
    for line in doctree.findall(desc_signature):
        for text in list(line.findall(nodes.Text)):
            short = re.sub(r"\b(jaxlib\._jax|jax|numpy|collections\.abc|pathlib)\.(?=[A-Za-z])", "", text)
            text.parent.replace(text, nodes.Text(re.sub(r"<class '(\w+)'>", r"\1", short)))


def setup(app):
    """Hooks of the site's own."""
    app.connect("autodoc-process-signature", _constructor)
    app.connect("doctree-read", _short_types)


with mock(autodoc_mock_imports):
    missing = sorted(set(_missing()))
if missing:
    raise RuntimeError(f"public names without docstring: {', '.join(missing)}")
