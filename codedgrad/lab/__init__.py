"""The offline laboratory: logs, simulated steps, and reference decoders, in numpy."""
