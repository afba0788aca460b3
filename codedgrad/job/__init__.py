"""This process among the others: who it is, how many there are, how the job ends.

In reading order: `lifecycle` (join and leave), `startup` (checks), `place` (who runs
where), `runtime` (what the rest of the package is handed), `waiting` (no wait hangs),
`progress` (no two workers wait for one another), `exit_status` (a script that fails by
`sys.exit`), `agreement` (workers compare what they do), `broadcast` (the first
parameters), `collectives` (averages and objects of all workers, with `reduction` and
`objects`), `checkpoint` (a file that is always whole), `faults` (slowness on purpose);
`channel` is the only file that touches mpi4py, `environment` the only one that reads
environment variables, `doctor` says what a machine lacks, `launch` starts a job.
"""
