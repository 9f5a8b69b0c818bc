"""Checks every jaxtyping annotation of the library while the tests run, and refuses silent rank promotion."""

import jax
from jaxtyping import install_import_hook

install_import_hook("jaxprune", "typecheck.check")
jax.config.update("jax_numpy_rank_promotion", "raise")
