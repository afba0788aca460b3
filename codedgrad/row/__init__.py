"""What a row is, on one worker, without a network: how it is laid out and written.

`payload.py` is the place to begin.
"""
