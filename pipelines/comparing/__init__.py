"""Comparing methods fairly: equal tuning, equal optimiser steps, one look at test, tests of significance."""
