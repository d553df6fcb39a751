"""Measurements, as ratios within one run. Run by hand; CI only sees that they run."""
