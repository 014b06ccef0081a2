"""What the papers claim, decided on runs: a file a paper, and the rule that is the same for all.

`rule` decides a comparison, `select` finds the runs to compare, `comparisons` joins both. `kavg`,
`lupa`, `adpsgd`, `mavg`, `hieravg` and `methods` have the claims with their margins.
"""
