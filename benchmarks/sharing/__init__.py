"""What Dynamic Sharing and GMD add to zero-fill and modality dropout: every set of modalities, equal steps, paired seeds.

`python -m benchmarks.sharing` runs what is missing and writes docs/sharing.md.
"""
