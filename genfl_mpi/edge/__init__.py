"""Simulate a wireless edge: what rounds cost in seconds, joules and bytes.

Nothing here trains or transmits; NumPy and SciPy are the only dependencies. All randomness is a function of
(world.seed, purpose, round). Arrays over clients are float64 in SI units: s, J, W, Hz, m, bit.
"""
