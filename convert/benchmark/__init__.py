"""Times the JAX models against PyTorch on one machine, fairly: the command `jaxprune benchmark`.

`command` takes the options, `referee` is the parent process and `worker` a timed one, with its contestants in
`jax_side` and `torch_side`. `job` is all they must agree on. `machine` watches who else uses the cores. `report` does
the arithmetic and the table. Timing without PyTorch is `jaxprune.evaluation.timing`'s matter.
"""
