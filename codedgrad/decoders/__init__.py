"""Estimates of the batch's gradient from whoever has arrived. numpy only."""
