"""Search over a precomputed error table."""

import torch


def search(strategy, table):
    """Run a strategy on a full error table (K, N). Return the last state and the evaluations per pair (K, N)."""
    state = strategy.init(len(table))
    count = torch.zeros_like(table, dtype=torch.int64)
    while (request := strategy.propose(state)) is not None:
        columns = torch.tensor(request.draws)
        count[request.classes[:, None], columns] += 1
        state = strategy.update(state, table[request.classes[:, None], columns])
    return state, count
