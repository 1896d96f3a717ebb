"""What the README's numbers come from: a room for each method, and its runs.

    python -m scripts.<room>.<name>     from the root of the repository

`gen`, `psgd`, `elmo`, `amos` and `robustness` import `common` and themselves;
`bench`, which compares the methods' costs, may import any of them.
"""
