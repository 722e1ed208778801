"""Which loaders take which results: optimum's own, ours, and plain ONNX Runtime.

    PYTHONPATH=build/optimum python -m benchmarks.loaders    # transformers 4.57 with optimum
    python -m benchmarks.loaders --plain                     # another transformers, ONNX Runtime alone

Small models with random weights, two layers each, are cut by half everywhere ("uniform"), in the second layer alone
("one layer"), and, where they have caches, by half with the caches whole ("loader-compatible"). A decoder passes if it
generates the tokens that the slim program generates in PyTorch, all else if its outputs are those of the slim program.
Each run keeps its rows in build/loaders; the table in benchmarks/results is made of all that are there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loaders_models import MODELS, Model
from fxslim.api import compress
from fxslim.decoders import PAST
from fxslim.export import create_session, export_onnx
from fxslim.generation import decoder_of_program, decoder_of_session, generate_greedily
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import FxslimError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.loader_check import check_loader, loader_for
from fxslim.passes.plan import Plan
from fxslim.passes.prepare import ALWAYS, SPLIT, prepare
from fxslim.sources import Source, load_model

OUT, KEPT = Path("benchmarks/results/loaders.md"), Path("build/loaders")
NEW = 8  # tokens that are generated
CLOSE = 1e-4  # float32 sums in another order, as a share of the largest value
YES = "yes"


def saved(model: Model, where: Path) -> Source:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, model.config)(**model.options)
    made = getattr(transformers, model.architecture)(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # so that no two logits are nearly the same
            parameter.add_(model.noise * torch.randn_like(parameter))
    made.save_pretrained(where)
    return load_model(str(where), task="text-generation" if model.task == "text generation" else None)


def plans(analysis: Analysis) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and options of plans: cuts of 50 % each."""
    yield "uniform", {}
    second = [g.name for g in analysis.prunable if re.search(r"\.1\.", g.name)]
    yield "one layer", {"groups": second}
    if any(g.caches for g in analysis.groups):
        yield "loader-compatible", {"keep_caches": True}


def tokens(run: Callable[[Tensor, Tensor], Tensor], wanted: Tensor, ids: Tensor, mask: Tensor) -> str:
    found = run(ids, mask)
    same = bool(torch.equal(found, wanted))
    return YES if same else f"no: {int((found != wanted).sum())} of {wanted.numel()} tokens differ"


def attempt(work: Callable[[], str]) -> str:
    try:
        return work()
    except Exception as error:  # whatever a loader raises is its result
        return f"no: {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def prompts(program: Program) -> tuple[Tensor, Tensor]:
    ids = dict(zip(program.outside_names, program.example_inputs, strict=True))["input_ids"][:, :5]
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


def plain(program: Program, directory: Path) -> str:
    """ONNX Runtime alone against the slim program."""
    session = create_session(directory / "model.onnx", "CPUExecutionProvider")
    if is_decoder(program):
        ids, mask = prompts(program)
        decoder = decoder_of_session(session)
        wanted = generate_greedily(decoder_of_program(program), ids, NEW, attention_mask=mask)
        return tokens(lambda i, m: generate_greedily(decoder, i, NEW, attention_mask=m), wanted, ids, mask)
    given = dict(zip(program.outside_names, (t.numpy() for t in program.example_inputs), strict=True))
    found = session.run(list(program.output_names), given)
    errors = [
        float((torch.from_numpy(f) - w).abs().max() / w.abs().max())
        for f, w in zip(found, Evaluator(program).run(list(program.example_inputs)), strict=True)
    ]
    return YES if max(errors) < CLOSE else f"no: relative error {max(errors):.1e}"


def ours(program: Program, directory: Path) -> str:
    if not is_decoder(program):
        return "not needed"
    from fxslim.loaders import SlimModelForCausalLM

    ids, mask = prompts(program)
    wanted = generate_greedily(decoder_of_program(program), ids, NEW, attention_mask=mask)
    said = []
    for binding in (False, True):
        model = SlimModelForCausalLM.from_pretrained(directory, use_io_binding=binding)

        def run(ids: Tensor, mask: Tensor, model: Any = model) -> Tensor:
            found: Tensor = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
            return found

        said.append(tokens(run, wanted, ids, mask))
    return next((text for text in said if text != YES), YES)


def stock(model: Model, program: Program, plan: Plan, directory: Path) -> str:
    found = check_loader(loader_for(model.architecture, program.outside_names, model.name), program, plan, directory)
    if not found.ok:
        return f"no: {found.failures[0]}"
    reads = {n: v for n, v in found.config.items() if n in ("hidden_size", "n_embd")}
    return YES + "".join(f", with {name} {old} -> {new} in config.json" for name, (old, new) in reads.items())


def is_decoder(program: Program) -> bool:
    return any(name.startswith(PAST) for name in program.outside_names)


def rows_of(model: Model, only_plain: bool) -> Iterator[dict[str, str]]:
    row = {"task": model.task, "model": model.name}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "model"
        try:
            analysis = prepare(saved(model, where).program, [*ALWAYS, SPLIT])
        except FxslimError as error:
            yield {**row, "plan": "all", "plain": f"no: {error.what}"}
            return
        for name, options in plans(analysis):
            out = Path(folder) / name
            out.mkdir()
            for file in where.glob("*.json"):
                shutil.copyfile(file, out / file.name)
            cells = {**row, "plan": name}
            try:
                plan, made = compress(analysis, width=0.5, importance="magnitude", **options)
                export_onnx(made.program, out / "model.onnx")
            except FxslimError as error:
                yield {**cells, "plain": f"no: {error.what}"}
                continue
            program = made.program
            cells["plain"] = attempt(lambda p=program, o=out: plain(p, o))  # type: ignore[misc]
            if not only_plain:
                cells["ours"] = attempt(lambda p=program, o=out: ours(p, o))  # type: ignore[misc]
                cells["stock"] = attempt(lambda p=program, q=plan, o=out: stock(model, p, q, o))  # type: ignore[misc]
            yield cells


def table(kept: Sequence[dict[str, Any]]) -> str:
    lines = ["# What takes a slim model", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    for run in kept:
        versions = ", ".join(f"{n} {v}" for n, v in run["versions"].items())
        columns = ["task", "model", "plan", *(["stock", "ours"] if not run["plain"] else []), "plain"]
        titles = {"stock": "optimum's own loader", "ours": "`SlimModelForCausalLM`", "plain": "ONNX Runtime"}
        lines += [f"## {versions}", "", "| " + " | ".join(titles.get(c, c) for c in columns) + " |"]
        lines += ["|" + "---|" * len(columns)]
        for row in run["rows"]:
            lines.append("| " + " | ".join(row.get(c, "-").replace("|", "/") for c in columns) + " |")
        lines.append("")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("transformers", "optimum-onnx", "torch", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="ONNX Runtime alone")
    parser.add_argument("--only", nargs="*", help="names of models: their rows are replaced, the others stay")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the rows that the table is made of")
    chosen = parser.parse_args()
    chosen.kept.mkdir(parents=True, exist_ok=True)
    kept = chosen.kept / f"{'plain' if chosen.plain else 'all'}.json"
    rows = json.loads(kept.read_text())["rows"] if chosen.only and kept.exists() else []
    for model in MODELS:
        if chosen.only and model.name not in chosen.only:
            continue
        rows = [row for row in rows if row["model"] != model.name]
        for row in rows_of(model, chosen.plain):
            print(row, flush=True)
            rows.append(row)
        names = [m.name for m in MODELS]
        rows.sort(key=lambda row: names.index(row["model"]))
        kept.write_text(json.dumps({"plain": chosen.plain, "versions": versions(), "rows": rows}, indent=1))
    chosen.out.write_text(table([json.loads(f.read_text()) for f in sorted(chosen.kept.glob("*.json"))]))


if __name__ == "__main__":
    main()
