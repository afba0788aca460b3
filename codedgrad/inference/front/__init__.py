"""A predictor by HTTP: `codedgrad serve module:function`.

`command` is the command line, `app` the requests, `batcher` makes batches of the
queries that come at about the same time, and `metrics` writes the counts for
Prometheus.
"""
