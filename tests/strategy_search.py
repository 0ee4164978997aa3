"""A search over a table of errors that are known beforehand."""

import torch


def search(strategy, table):
    """Runs a strategy on a full error table (K, N): the last state, and how often each pair was evaluated (K, N)."""
    state = strategy.init(len(table))
    count = torch.zeros_like(table, dtype=torch.int64)
    while (request := strategy.propose(state)) is not None:
        columns = torch.tensor(request.draws)
        count[request.classes[:, None], columns] += 1
        state = strategy.update(state, table[request.classes[:, None], columns])
    return state, count
