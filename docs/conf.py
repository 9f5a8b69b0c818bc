"""Settings of the documentation site. `make docs` builds it; every warning is an error."""

import inspect

import jaxprune

project = "jaxprune"
author = "the jaxprune developers"
html_title = "jaxprune"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"  # pages hold no cells; their blocks are run by tests/test_docs.py
exclude_patterns = ["_*"]
html_theme = "furo"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.strikethrough"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
# Docstrings name types of other projects, whose pages are not fetched while building.
nitpick_ignore_regex = [("py:.*", r".*")]


def _without_docstring() -> list[str]:
    public = {name: getattr(jaxprune, name) for name in jaxprune.__all__}
    return [name for name, value in public.items() if callable(value) and not inspect.getdoc(value)]


if missing := _without_docstring():
    raise RuntimeError(f"public names without docstring: {', '.join(missing)}")
