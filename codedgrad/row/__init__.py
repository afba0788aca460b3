"""What a row is, on one worker: its layout, and how gradients get into it and out."""
