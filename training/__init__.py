"""What ``train.py`` stands on: settings, data, optimizers, logs and the report of a run."""
