"""This process among the others: who it is, how many there are, how the job ends.

In reading order: `lifecycle` (join and leave), `startup` (checks), `place` (who runs
where), `runtime` (what the rest of the package is handed), `waiting` (no wait hangs),
`agreement` (workers compare what they do), `broadcast` (the first parameters);
`channel` is the only file that touches mpi4py, `environment` the only one that reads
environment variables, `doctor` says what a machine lacks.
"""
