"""Training steps as users of each library write them: an MLP with Adam, an LSTM, a ResNet-18 with momentum.

`data` holds weights and batches; `ours`, `torch_` and `jax_` each have a `Contender(case, library)` that compiles, steps, and
gives its loss and one gradient. The rows in `bench/cpu/rows/training.py` time them.
"""
