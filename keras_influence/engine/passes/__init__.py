"""Passes over data: sums, and results batch by batch, made wherever the data are.

A pass is a function of a `Ground` (model and loss), a `Run` of consecutive batches, and values.
Data in memory, and datasets, are one run, taken here. Dask arrays have a run for each chunk,
taken in turn on one machine, and where the chunks are on a cluster. So nobody above needs to know.
"""
