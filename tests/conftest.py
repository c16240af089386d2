"""One machine plays eight devices; nothing here reads or writes outside of temporary folders."""

from __future__ import annotations

import tempfile

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The same small networks are compiled by many tests.
_compiled = tempfile.TemporaryDirectory(prefix="tsm-jax-compiled-")
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
