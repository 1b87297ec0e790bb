"""Compiling a run's steps for TPUs that are not there, and reading off what they would cost."""
