"""One step on one worker: passes into rows, waiting, helping, and what happened."""
