"""How far two computations of the same may lie apart, on any processor. See `rounding`, which tries it.

Float32 sums differ in their last bits between batch sizes, instruction sets, numbers of threads and libraries. What is
computed once, or in batches of one size, agrees bit for bit, and tests may say so.
"""

# Of one (class, draw), a mean of squares (ε - ε̂)²: 1e-6 of ε̂ is 2e-6 of an error of 1, and more of a smaller one.
ERRORS = {"rtol": 1e-5, "atol": 1e-7}

# Of errors about 1, averaged over draws, of which some are above and some below.
MEAN_ERROR = 2e-6

# Absolute: of a t statistic, whose standard error is 1e-2 and more.
CONFIDENCE = 1e-4


def posteriors(num_dimensions, temperature=1.0):
    """Since ln p = -D · m / T + const., an error δ of both means of a difference is a factor exp(2 · D · δ / T)."""
    return {"rtol": 2 * num_dimensions * MEAN_ERROR / temperature, "atol": 1e-9}


def scores(num_dimensions, temperature=1.0):
    """Of differences of summed errors, and of their standard errors, in nats."""
    return {"rtol": 1e-5, "atol": 2 * num_dimensions * MEAN_ERROR / temperature}
