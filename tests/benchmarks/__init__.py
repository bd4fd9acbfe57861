"""What the analyses cost, measured: ``make bench``."""
