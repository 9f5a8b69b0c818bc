"""Times the JAX models against PyTorch on one machine, fairly: the command `jaxprune benchmark`.

`command` takes the options. `referee` is the parent process, `worker` a timed one. Their contestants are in `jax_side`,
`torch_side` and `runtime_side`; the last one's files are made by `exported`. `job` is all that they must agree on.
`machine` watches other users of the cores. `report` makes the numbers and the table. Timing without PyTorch is in
`jaxprune.evaluation.timing`.
"""
