"""First results: every method on every small data set at equal optimiser steps, and the page docs/first-results.md of it.

    python -m benchmarks.first_results              # from the root of the repository; goes on where it was stopped

`studies` says what is run, `training` trains one run and writes its record, `schedule` runs what is missing, `statistics`
compares records, `reasons` asks why accuracy was lost, `page` and `plot` write what the records say.
"""
