"""The simulated wireless edge: what rounds take in seconds, joules and bytes. NumPy only; nothing here trains or sends.

All randomness is a function of (world.seed, purpose, round); arrays over clients are float64 in SI units: s, J, W, Hz, m, bit.
"""
