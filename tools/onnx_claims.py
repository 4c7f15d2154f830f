"""Writes docs/reference/onnx-suite.md: how many cases of the ONNX backend suite pass, by group, by the interpreter.

    python tools/onnx_claims.py [--compiled]       (needs the package onnx; some minutes, with --compiled an hour)

A case passes where all its results are the suite's within its tolerances; it is refused where an error of ours says what is not
supported; everything else is wrong. Cases whose numbers are drawn at random have no right answer and are left out.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.onnx_suite import RANDOM, cases, outcome  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "onnx-suite.md"
GROUPS = {
    "attention": "attention rotary_embedding", "control flow": "if_ loop scan_ sequence optional range",
    "convolutions and pools": "conv average_pool averagepool max_pool maxpool max_unpool lppool lp_pool globalpool global col2im "
    "deform Conv AvgPool MaxPool AdaptiveAvg PoolKernel",
    "images": "resize upsample grid_sample affine_grid roialign center_crop image_decoder",
    "losses": "nllloss sce negative_log_likelihood softmax_cross", "machine learning (ai.onnx.ml)": "ai_onnx_ml",
    "quantised": "quantize qlinear matmulinteger convinteger dynamicquantize", "random": "bernoulli dropout",
    "recurrent": "lstm gru rnn", "reductions": "reduce argmax argmin cumsum cumprod topk top_k",
    "signals and text": "dft stft melweight hannwindow hammingwindow blackmanwindow string regex tfidf label_encoder",
    "sizes known at run time": "nonzero nonmaxsuppression unique compress",
    "training": "adam adagrad momentum gradient",
}  # fmt: skip


def group_of(name: str) -> str:
    plain = name.removeprefix("test_")
    for group, words in GROUPS.items():
        if any(plain.lower().startswith(w.lower()) for w in words.split()):
            return group
    return "PyTorch's layers and models" if plain[:1].isupper() or plain.startswith("operator_") else "other operators"


def main() -> None:
    compiled = "--compiled" in sys.argv
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    refused: Counter[str] = Counter()
    wrong = []
    for case in cases():
        if RANDOM.search(case.name):
            continue
        result = outcome(case, compiled)
        kind = result.split(":")[0]
        kind = kind if kind in ("pass", "refused") else "wrong"
        counts[group_of(case.name)][kind] += 1
        if kind == "refused":
            refused[case.name.removeprefix("test_").removesuffix("_expanded")] += 1
        if kind == "wrong":
            wrong.append(case.name)
    total = sum(counts.values(), Counter())
    lines = [
        "<!-- Written by tools/onnx_claims.py. Do not edit. -->\n", "# The ONNX backend suite\n",
        f"{total['pass']:,} of {total.total():,} cases pass {'as machine code' if compiled else 'by the interpreter'}, "
        f"{total['refused']} are refused with a reason, {total['wrong']} give a wrong answer. "
        "`python tools/onnx_claims.py` counts anew.\n",
        "| group | cases | pass | refused | wrong |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for group, c in sorted(counts.items()):
        lines.append(f"| {group} | {c.total()} | {c['pass']} | {c['refused']} | {c['wrong']} |")
    lines.append(f"\nRefused: {', '.join(f'`{n}`' for n in sorted(refused)) or 'none'}.")
    if wrong:
        lines.append(f"\nWrong: {', '.join(f'`{n}`' for n in sorted(wrong))}.")
    PAGE.write_text("\n".join(lines) + "\n")
    print(lines[2])


if __name__ == "__main__":
    main()
