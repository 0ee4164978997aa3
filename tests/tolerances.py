"""Tolerances for two float32 computations of the same quantity, on any processor. `rounding` helps to test them.

Float32 sums differ in their last bits between batch sizes, instruction sets, thread counts and library versions. Values
computed once, or in batches of one size, are bitwise identical, and tests may assert that.
"""

# Error of one (class, draw), a mean of squares (ε - ε̂)². A relative 1e-6 of ε̂ changes an error of 1 by up to 2e-6,
# and a smaller error by a larger share.
ERRORS = {"rtol": 1e-5, "atol": 1e-7}

# Absolute difference of an error of about 1 that is averaged over draws.
MEAN_ERROR = 2e-6

# Absolute difference of a search confidence, which is a tail probability of t statistics of mean errors.
CONFIDENCE = 1e-4


def posteriors(num_dimensions, temperature=1.0):
    """Return the tolerances of posteriors.

    Because ln p = -D · m / T + const., a change δ of two mean errors m changes p by a relative 2 · D · δ / T.
    """
    return {"rtol": 2 * num_dimensions * MEAN_ERROR / temperature, "atol": 1e-9}


def scores(num_dimensions, temperature=1.0):
    """Return the tolerances of scores in nats and of their standard errors.

    A score is D / T times a difference of two mean errors.
    """
    return {"rtol": 1e-5, "atol": 2 * num_dimensions * MEAN_ERROR / temperature}
