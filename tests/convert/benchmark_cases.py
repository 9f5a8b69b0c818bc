"""Small jobs and plans of the benchmark, for its tests."""

from jaxprune.convert.benchmark.job import Job
from jaxprune.convert.benchmark.referee import Plan


def a_job(**changes) -> Job:
    sizes = {"family": "ast", "size": "micro", "frames": 128, "batch": 1, "classes": 10}
    return Job(**sizes | {"device": "cpu", "cores": [0], "min_seconds": 0.0} | changes)


def a_plan(**changes) -> Plan:
    plan = {"families": ("ast",), "sizes": ("micro",), "frames": (128,), "batches": (1,), "keep_rates": (1.0,)}
    return Plan(**plan | {"dtypes": ("float32",)} | changes)
