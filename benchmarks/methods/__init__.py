"""Every registered balancer and every resampler in one table: docs/method-results.md.

    python -m benchmarks.methods              # from the root of the repository; goes on where it was stopped

`studies` says what is run, `training` what a record holds, `fingerprint` what code it depends on, `schedule` runs what is
missing, `results` turns records into figures, `page`, `tables` and `plot` write what they say. Data sets, trainings and
statistics are those of `benchmarks.first_results`.
"""
