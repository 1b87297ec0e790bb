"""The score file: sums of statistics with counts and provenance; portable, mergeable, without jax.

One safetensors file. Its arrays add up over batches, devices, hosts and domains; what cannot be added (roots, ratios,
ranks) is made from them when a plan is made. Every array has a leading axis of the two `HALVES` of the calibration rows
(even and odd), so that the stability of a ranking can be told.
"""

HALVES = 2
