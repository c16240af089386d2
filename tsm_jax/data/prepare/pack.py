"""A list of clips into a packed folder, on this machine's cores or with Apache Beam."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import islice

from tsm_jax.data.prepare.jobs import JobFailure, run_jobs
from tsm_jax.data.prepare.record import make_record
from tsm_jax.data.prepare.shards import Shards
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.files import reason
from tsm_jax.terminal import progress


def pack(shards: Shards, *, processes: int = 0, seconds: float = 300.0) -> list[tuple[str, str]]:
    """Writes the shards that are missing, and then what describes them.

    Args:
        shards: what to pack, and where.
        processes: that decode and encode, 0 for one per core.
        seconds: limit for one clip.

    Returns:
        (clip, reason) of those that failed; they are left out.

    Raises:
        UserError: the folder is another list's or cannot be written, or no clip could be read.
    """
    try:
        return _pack(shards, processes, seconds)
    except OSError as error:
        raise UserError(f"cannot write {shards.directory}: {reason(error)}") from error


def _pack(shards: Shards, processes: int, seconds: float) -> list[tuple[str, str]]:
    shards.begin()
    if shards.is_complete():
        shards.tidy()
        return []
    missing = shards.missing()
    clips = [clip for shard in missing for clip in shards.clips_of(shard)]
    make = partial(make_record, options=shards.options)
    with closing(run_jobs(make, clips, processes=processes, seconds=seconds)) as jobs:
        results = progress((result for _, result in jobs), "pack", len(clips))
        for shard in missing:
            shards.write(shard, islice(results, len(shards.clips_of(shard))))
    return shards.finish()


def pack_with_beam(shards: Shards, arguments: Sequence[str] = ()) -> list[tuple[str, str]]:
    """As `pack`, each shard on whichever machine the runner chooses; the same bytes.

    Args:
        shards: its directory and the clips' paths must mean the same on all machines.
        arguments: of the pipeline, as `--runner=FlinkRunner`; the DirectRunner by default.

    Raises:
        UserError: as `pack`, or Beam is not installed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("Apache Beam is not installed: pip install 'tsm-jax[beam]'") from error
    shards.begin()
    if shards.is_complete():
        shards.tidy()
        return []
    with beam.Pipeline(options=pipeline_options.PipelineOptions(list(arguments))) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(shards.missing())
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(partial(_write_shard, shards))
        )
    return shards.finish()


def _write_shard(shards: Shards, shard: int) -> int:
    def results():
        for clip in shards.clips_of(shard):
            try:
                yield make_record(clip, shards.options)
            except UnreadableClipError as error:
                yield JobFailure(" ".join(str(error).split()))

    shards.write(shard, results())
    return shard
