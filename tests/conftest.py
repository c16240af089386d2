"""One machine plays eight devices; nothing here reads or writes outside of temporary folders."""

from __future__ import annotations

import os
import tempfile

# XLA logs a page for each step that it loads from the cache, see tsm_jax/compilation_cache.py.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The same small networks are compiled by many tests.
_compiled = tempfile.TemporaryDirectory(prefix="tsm-jax-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name  # of processes that tests start
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
