"""Trainings that are ordered after a search: other seeds, folds, a student of the ensemble.

They are the trials of a nested study: a folder inside the study's own, with the same layout and
its own database, whose trials are all enqueued. So workers, checkpoints, deadlines and
interruptions are those of a search, and what is ordered is run exactly once.

Use: make an `Order` for each training (`search.assignments`: a unique name, the parameters of a
trial, and an `Assignment`), then `train_again(study, orders, kind="seeds", effort=...)`. Who
needs another kind of training adds a field to `Assignment`, reads it in `search.objective`, and
adds a name to `Kind`.
"""
