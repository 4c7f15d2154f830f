"""Answers of PyTorch to small programs, and the same programs in FluxIR.

`cases.py` says how a case is written and draws its inputs, `functions.py` and `models.py` list the cases, `make.py`
writes the fixtures (`*.npz`) with PyTorch. The tests need the fixtures only; PyTorch is needed to make them anew.
"""
