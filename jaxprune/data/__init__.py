"""Data sets: the clips and labels on disk, and their batches of waveforms.

A source (`published`, `own`, `shards`) is a small value that says where a data set lies. Its `read()` gives a `Dataset`
of `records`, checked. `batches` makes batches of waveforms from one, with noise under them where `background` is asked
for. `held` keeps decoded clips for the next epoch, `prefetch` sends batches to the devices, and `statistics` measures a
data set. `labels` and `tables` read the files that people keep lists in, `folders` and `locations` look at disks, and
`shard_writer` decodes a data set once for all.

Decoding is `jaxprune.decoding`'s, spectrograms are `jaxprune.features`, and augmentation belongs to training.
"""

__all__ = [
    "background",
    "batches",
    "folders",
    "held",
    "labels",
    "locations",
    "order",
    "own",
    "prefetch",
    "published",
    "records",
    "shard_files",
    "shard_writer",
    "shards",
    "statistics",
    "tables",
]
