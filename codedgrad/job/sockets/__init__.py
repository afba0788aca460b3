"""A job's workers over sockets, without MPI; docs/sockets.md says how they meet.

- `proof` is what both ends of a new connection say to prove that they have the token,
- `door` answers those who call, `calling` calls,
- `meeting` exchanges the cards that say where the doors are,
- `world` joins them, and connects any of the workers,
- `collective` and `channel` are the channel of `codedgrad.job.channel`,
- `desk` is where those who come back ask to be let in, `lines` what they enter by,
- `supervisor` starts the workers and ends them together.
"""
