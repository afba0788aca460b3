"""Local groups: the processes of one machine that act as one worker of the code.

A group's first process, its leader, takes part in the coded exchange, over a channel
and an engine that only leaders have. Inside a group

- decisions travel by MPI: a few numbers, also where rows travel by NCCL;
- rows and sums travel by torch.distributed: NCCL on GPUs, else Gloo;
- what the leader has decoded is seen in a page of shared memory, so that a pass can
  look at it at every module boundary.

In reading order: `membership` (which processes form a group), `connect` (how they are
connected), `channel` (what they do together), `board` (the page); then a step of a
group: `seat` (what the faces ask for), `code` (which codes fit, who computes what),
`exchange`, `passes` and `help`.
"""
