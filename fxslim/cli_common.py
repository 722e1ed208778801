"""What all commands share: options, errors without tracebacks, progress on standard error, JSON on standard output."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from fxslim.cli_print import print_json as print_json
from fxslim.cli_print import print_table as print_table
from fxslim.cli_progress import watching as watching
from fxslim.graph.errors import FxslimError
from fxslim.plugins import load_plugins
from fxslim.processes import joined, spoken

if TYPE_CHECKING:
    from fxslim.graph.axes.groups import Analysis
    from fxslim.graph.program import Program
    from fxslim.run_steps import Watcher
    from fxslim.sources import Source

P = ParamSpec("P")
T = TypeVar("T")

DEFECT = 70
"""Exit code of a defect of fxslim itself: EX_SOFTWARE of sysexits.h."""

INTERRUPTED = 130


def _importance(name: str) -> str:
    from fxslim.passes.importance import importance_names

    return _one_of(name, importance_names)


def _method(name: str) -> str:
    from fxslim.passes.methods import METHODS

    return _one_of(name, lambda: tuple(METHODS))


def _one_of(name: str, names: Callable[[], Sequence[str]]) -> str:
    """The name, if there is one like it: fxslim's own, or that of a plug-in."""
    if name not in names():
        try:
            load_plugins()
        except FxslimError as error:
            raise typer.Exit(_fail(f"error: {error}", error.exit_code)) from None
        if name not in names():
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, names()))}.")
    return name


Model = Annotated[
    str,
    typer.Argument(
        help="bundled:NAME, a Hugging Face directory or id, module:factory, a .pt2 file, or a saved slim program.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Directory for the result.", show_default=False)]
Keep = Annotated[float | None, typer.Option(help="Share of all parameters (or MACs) that remains, such as 0.7.")]
Width = Annotated[
    float | None, typer.Option(help="Share of positions that every chosen group keeps, instead of --keep.")
]
Of = Annotated[
    Literal["params", "macs", "latency"],
    typer.Option(help="What --keep is a share of; latency is measured on --provider (fxslim slim)."),
]
ImportanceName = Annotated[
    Literal["fasp", "obs", "flap", "activation", "taylor", "magnitude", "random"] | None,
    # The types are what fxslim has; the parser knows those of plug-ins besides.
    typer.Option(
        "--importance",
        parser=_importance,
        metavar="[fasp|obs|flap|activation|taylor|magnitude|random]",
        help="How positions are chosen, instead of what the method says; plug-ins may add more.",
        show_default=False,
    ),
]
MethodName = Annotated[
    Literal[
        "best",
        "fasp",
        "wanda-sp",
        "flap",
        "osscar",
        "transact",
        "owl",
        "modegpt",
        "pca",
        "svd",
        "asvd",
        "svd-llm",
        "welore",
        "lr-sms",
        "shortgpt",
        "foldgpt",
        "magnitude",
    ]
    | None,
    typer.Option(
        "--method",
        parser=_method,
        metavar="[best|fasp|wanda-sp|flap|osscar|transact|owl|modegpt|pca|svd|asvd|svd-llm|welore|lr-sms|shortgpt|"
        "foldgpt|magnitude]",
        help="What is chosen, cut and restored, by name; plug-ins may add more. Default: best with calibration data, "
        "else magnitude.",
        show_default=False,
    ),
]
BudgetName = Annotated[
    Literal["uniform", "global", "outliers", "standardised", "influence", "linear"] | None,
    typer.Option(
        "--budget",
        help="How the budget is divided, instead of what the method says: one ratio, by effect, by outliers, by "
        "standardised scores, by the influence of residual branches; of ranks also linearly by depth.",
        show_default=False,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        help="Choose positions in so many rounds of cutting and restoring. Default: as the method says.",
        show_default=False,
    ),
]
ScheduleName = Annotated[
    Literal["geometric", "linear"],
    typer.Option("--schedule", help="Of the rounds: each removes the same share of what is left, or the same number."),
]
Slope = Annotated[
    float,
    typer.Option(help="Of --budget linear: above 0 ranks fall from the first layer to the last, below 0 they rise."),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        help="Data to choose and restore by: .txt, .jsonl, .npz, .npy, .safetensors; or self. May be given again, and "
        "with weights: code.txt=0.7.",
        show_default=False,
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        "--text-field", help="The field of .jsonl records that holds the text. Default: text.", show_default=False
    ),
]
Groups = Annotated[str | None, typer.Option(help="Only these kinds or patterns of group names, separated by commas.")]
KeepFixed = Annotated[
    list[str] | None,
    typer.Option(help="A pattern of groups or weights that stay whole; may be given again.", show_default=False),
]
Uncounted = Annotated[
    list[str] | None,
    typer.Option(
        help="A pattern of weights that --keep does not count, as embeddings; may be given again.", show_default=False
    ),
]
Inexact = Annotated[bool, typer.Option("--inexact", help="Also cut groups whose removal changes values that stay.")]
RoundTo = Annotated[
    int | None,
    typer.Option(
        help="Round sizes to a multiple of this: 8 or 16 is what convolutions like. Default: 1; with --of latency "
        "what is measured to pay.",
        show_default=False,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(help="Calibration rows. Default: 64 windows of text, 512 rows of arrays.", show_default=False),
]
Window = Annotated[
    int | None, typer.Option(help="Tokens in a window of text. Default: what fits, at most 256.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
RestoreName = Annotated[
    Literal["least-squares", "bias", "none"] | None,
    typer.Option(
        help="How weights are restored. Default: as the method says, least-squares with calibration data.",
        show_default=False,
    ),
]
SplitFused = Annotated[
    bool,
    typer.Option(
        "--split-fused",
        help="First split projections that compute q, k and v in one product, so that V alone can be cut.",
    ),
]
Prepare = Annotated[
    list[str] | None,
    typer.Option(
        "--prepare",
        help="A pass that comes before the plan, as `name{option=value}`; may be given again. Plug-ins may add more.",
        show_default=False,
    ),
]
Opset = Annotated[int, typer.Option(help="ONNX opset, 18 to 24.")]
Provider = Annotated[str, typer.Option(help="Execution provider: auto, cpu, cuda, ... (fxslim doctor lists them).")]
Threads = Annotated[int, typer.Option(help="Threads of an ONNX Runtime session.")]
Sizes = Annotated[
    str | None,
    typer.Option(
        help="Sizes at which is timed, by dimension: batch_size=1,sequence_length=256. Default: one row of the data.",
        show_default=False,
    ),
]
TaskName = Annotated[
    Literal["text-generation"] | None,
    typer.Option(
        "--task",
        help="How a Hugging Face model is called: text-generation has its key-value cache as inputs and outputs.",
        show_default=False,
    ),
]
LoaderCompatible = Annotated[
    bool,
    typer.Option(
        "--loader-compatible",
        help="Cut only what optimum's own loaders can load; slim proves it by loading the result (needs optimum).",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="Load the weights as this type, such as float32.")]
OnnxDtype = Annotated[
    Literal["float16", "bfloat16"] | None,
    typer.Option(
        "--onnx-dtype",
        help="The ONNX file in this type, with float32 where it is needed; slim writes it beside the float32 one.",
        show_default=False,
    ),
]
Quantize = Annotated[
    Literal["dynamic", "static"] | None,
    typer.Option(
        "--quantize",
        help="Also write model_quantized.onnx with 8-bit weights; static takes ranges from the calibration data.",
        show_default=False,
    ),
]
MaxQualityLoss = Annotated[
    float | None,
    typer.Option(
        help="Fail where the score gets worse by more than this share: 0.02 lets perplexity 10 become 10.2.",
        show_default=False,
    ),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(help="Fail where the lower end of the speed-up's interval is below this.", show_default=False),
]
MaxBytes = Annotated[
    int | None, typer.Option(help="Fail where the ONNX file is larger than so many bytes.", show_default=False)
]
MaxParityError = Annotated[
    float | None,
    typer.Option(
        help="Fail where an output of model.onnx differs by more than this from the slim program's.", show_default=False
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Make the plan, say what it and the run will take, and write nothing."),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Leave the weights of a Hugging Face model on disk; each is read when it is needed.",
    ),
]
OffloadActivations = Annotated[
    bool,
    typer.Option(
        "--offload-activations",
        help="With --stream: what calibration batches hold between two pieces of the model waits on disk too.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where calibration runs, piece by piece: cuda. Default: the CPU.", show_default=False),
]
TrustPt2 = Annotated[
    bool, typer.Option("--trust-pt2", help="Load a .pt2 file, which can run any code its author put in.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a Hugging Face model.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="A line for each step and how long it took, for logs that are kept.")
]


def debugging() -> bool:
    """Whether FXSLIM_DEBUG asks for tracebacks."""
    return os.environ.get("FXSLIM_DEBUG", "") not in ("", "0")


def guarded(command: Callable[P, T], *, plugins: bool = True) -> Callable[P, T]:
    """The command with its errors as messages: exit code 2 bad input, 1 a failed check, 70 a defect, 130 Ctrl-C.

    Plug-ins that are installed are loaded before it runs, unless it does so by itself (`plugins=False`).
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with joined(command.__name__) as takes_part:
                if not takes_part:
                    raise typer.Exit(0)
                if plugins:
                    load_plugins()
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(_fail(_interrupted(kwargs), INTERRUPTED)) from None
        except FxslimError as error:
            raise typer.Exit(_fail(f"error: {error}", error.exit_code)) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except MemoryError:
            raise typer.Exit(
                _fail("error: not enough memory\n  next:  fewer --samples, or a smaller --window", 2)
            ) from None
        except Exception as error:  # whatever is left is not the user's doing, and they must not be left guessing
            raise typer.Exit(_fail(_defect(error), DEFECT)) from None

    return run


def _interrupted(options: Mapping[str, Any]) -> str:
    """What stays after Ctrl-C."""
    out = options.get("out")
    if out is not None:
        from fxslim.pipeline import work_folder  # heavy, and needed on this way out alone
        from fxslim.targets import WORK

        if kept := next((f for f in (work_folder(out), Path(out).expanduser() / WORK) if f.is_dir()), None):
            return f"interrupted; run the same command again to go on: what was found so far is in {kept}"
    return "interrupted; nothing was left behind"


def _fail(text: str, code: int) -> int:
    if debugging():
        traceback.print_exc()
    typer.echo(spoken(text), err=True)
    return code


def _defect(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        f"error: a defect of fxslim, not of your input: {type(error).__name__}: {first}\n"
        "  next:  run it again with FXSLIM_DEBUG=1 and report the traceback"
    )


def split(text: str | None) -> tuple[str, ...] | None:
    """The parts of a list separated by commas."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def one_or_several(values: Sequence[str] | None) -> str | tuple[str, ...] | None:
    """What an option was given: itself where it was given once, None where it was not."""
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def opened(
    shown: Watcher, model: str, *, prepare: Sequence[str] | None = None, split_fused: bool = False,
    further: Sequence[str] | None = None, trust_pt2: bool = False, trust_remote_code: bool = False,
    dtype: str | None = None, task: str | None = None, stream: bool = False, judged: bool = False,
    placing: Callable[[Program], object] = lambda program: None,
) -> tuple[Source, Analysis]:  # fmt: skip
    """The model and its analysis, each a step that is shown; prepared as a plan says, or as always. `placing` says
    before that where the program runs. Weights on disk are only looked at where they are `judged`."""
    from fxslim.opening import open_model, prepared
    from fxslim.sources import refuse_bad_weights

    shown.step("load")
    source = open_model(
        model, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code, dtype=dtype, task=task, stream=stream
    )
    shown.step("capture")
    program = source.program
    if stream and judged:
        refuse_bad_weights(source)
    placing(program)
    shown.step("analyze")
    return source, prepared(program, prepare, split_fused=split_fused, further=further or ())
