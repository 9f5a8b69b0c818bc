"""Times the JAX models against PyTorch on one machine, fairly: `scripts/benchmark.py` is the program.

`referee` holds the parent process, `worker` the timed ones, `machine` the watch over what else uses the cores, `report`
the arithmetic and the table.
"""
