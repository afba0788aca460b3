"""Local groups: the processes of one machine that act as one worker of the code."""
