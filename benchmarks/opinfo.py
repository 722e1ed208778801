"""The rule oracle on the sample inputs that PyTorch tests its own operators and modules with.

python -m benchmarks.opinfo [--samples 40] [--calls 25] [--out benchmarks/results/opinfo.md]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from fxslim.graph.axes.registry import REGISTRY
from tests.graph.axes.opinfo import ABSENT, Harvest, harvest
from tests.graph.axes.opinfo_cautions import CAUTIONS
from tests.graph.axes.opinfo_check import Verdict, judge


def report(found: Harvest, verdict: Verdict, options: argparse.Namespace) -> Iterator[str]:
    """The lines of the page."""
    cautions = verdict.cautions()
    new = [f for (op, x), f in cautions.items() if x not in CAUTIONS.get(op, ("", ""))[0].split()]
    yield "# Rules against OpInfo's samples\n"
    yield f"torch {torch.__version__}; at most {options.samples} sample inputs of an operator or module, at most "
    yield f"{options.calls} distinct calls of an overload, in float64 (integers where the operator takes only those).\n"
    yield "| | |\n|---|---|"
    yield f"| overloads with a rule | {len(REGISTRY)} |"
    yield f"| of them called by a sample | {len(found.calls)} |"
    yield f"| of them tried by the oracle | {len(verdict.run)} |"
    yield f"| operators and modules of the database traced | {found.infos} and {found.modules} |"
    yield f"| sample inputs traced | {found.traced} |"
    yield f"| distinct calls | {sum(map(len, found.calls.values()))} |"
    yield f"| samples tried | {sum(verdict.run.values())} |"
    yield f"| selections that differ along a batch axis tried | {verdict.batched} |"
    yield f"| claims refuted | {len(verdict.findings)} |"
    yield f"| letters more cautious than the operator, with a reason | {len(cautions) - len(new)} |"
    yield f"| letters more cautious than the operator, without one | {len(new)} |"
    yield f"| overloads called that have no rule | {len(found.unruled)} |"
    yield from _table("Sample inputs that were not traced", found.untraced)
    yield from _table("Calls that were not kept", found.skipped)
    yield from _table("Samples that were not tried", verdict.skipped)
    yield from _table("Calls that a rule declines (reported by name)", verdict.declined)
    yield from _table("Calls that a rule does not fit (reported by name)", verdict.refused)
    yield from _list("Refuted", map(str, verdict.findings))
    yield from _list("More cautious, without a reason", map(str, new))
    yield from _list("With a rule, called by no sample", sorted(str(op) for op in REGISTRY if op not in found.calls))
    yield from _list("Without a rule", sorted(found.unruled))


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield from (["| why | how many |\n|---|---|"] if counts else ["None."])
    yield from (f"| {reason} | {count} |" for reason, count in counts.most_common())


def _list(title: str, items: Iterator[str] | list[str]) -> Iterator[str]:
    lines = [f"- `{item}`" for item in items]
    yield f"\n## {title}\n"
    yield from lines or ["None."]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40, help="sample inputs of an operator or module")
    parser.add_argument("--calls", type=int, default=25, help="distinct calls of an overload")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/opinfo.md"))
    options = parser.parse_args()
    if ABSENT is not None:
        print(ABSENT, file=sys.stderr)
        return 2
    found = harvest(options.samples)
    verdict = judge(found.spread(options.calls))
    options.out.write_text("\n".join(report(found, verdict, options)) + "\n", encoding="utf-8")
    print(f"{len(verdict.run)} overloads, {sum(verdict.run.values())} samples, {len(verdict.findings)} refuted claims")
    return int(bool(verdict.findings))


if __name__ == "__main__":
    raise SystemExit(main())
