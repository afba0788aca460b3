"""The benchmark of the frameworks runs."""

import bench_frameworks


def test_the_benchmark_runs() -> None:
    results = bench_frameworks.main(["--toy"])
    assert results["lightning slow / calm"] > 0
    assert results["trainer slow / calm"] > 0
