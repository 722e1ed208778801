"""An encoder with a decoder as two programs over the same weights: cut where the encoder's output comes out.

Nothing is captured or planned twice: both are parts of one program, which computes what they compute one after the
other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from fxslim.graph.axes.terms import size_of
from fxslim.graph.dead_calls import remove_dead_calls
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["STATES", "encoder_and_decoder"]

STATES = "encoder_last_hidden_state"
"""The output at which a program is cut."""

_LOGITS, _GIVEN = "logits", "encoder_hidden_states"
_MASK, _IDS, _NEW_IDS = "attention_mask", "input_ids", "decoder_input_ids"
_OF_DECODER = (_NEW_IDS, _MASK, _GIVEN)
_SIZE = torch.ops.aten.sym_size.int


def encoder_and_decoder(program: Program) -> tuple[Program, Program]:
    """The two parts of a program, with optimum's names. The encoder takes what the program does but for
    `decoder_input_ids`, and returns `last_hidden_state` [batch, length, width]; the decoder takes `input_ids` [batch,
    new], `encoder_hidden_states` and, where it looks at it, `encoder_attention_mask`, and returns `logits`.

    Raises:
        InputError: the program has no such output, or the decoder reads the encoder's inputs past it.
    """
    outputs = dict(zip(program.output_names, program.output_nodes, strict=True))
    states = outputs.get(STATES)
    if not isinstance(states, fx.Node) or _LOGITS not in outputs or _NEW_IDS not in program.input_names:
        raise InputError(
            f"the program has not the outputs {_LOGITS!r} and {STATES!r} and the input {_NEW_IDS!r}: it is not two",
            at=program.source,
            remedy="run it as one graph",
        )
    return _encoder(program), _decoder(program)


def _encoder(program: Program) -> Program:
    part = program.clone()
    _returns(part, "last_hidden_state", STATES)
    _read_sizes_elsewhere(part, [n for n in part.graph.find_nodes(op="placeholder") if n.name != _NEW_IDS])
    made = _finished(part, program, {})
    _refuse(made, [name for name in made.input_names if name == _NEW_IDS], "the encoder", "the decoder's input")
    return made


def _decoder(program: Program) -> Program:
    part = program.clone()
    outputs = dict(zip(part.output_names, part.output_nodes, strict=True))
    states: fx.Node = outputs[STATES]
    with part.graph.inserting_after(part.graph.find_nodes(op="placeholder")[-1]):
        given = part.graph.placeholder(_GIVEN)
    given.meta = {"val": states.meta["val"]}
    (output,) = part.graph.find_nodes(op="output")
    states.replace_all_uses_with(given, delete_user_cb=lambda user: user is not output)
    _returns(part, _LOGITS, _LOGITS)
    _read_sizes_elsewhere(part, [n for n in part.graph.find_nodes(op="placeholder") if n.name in _OF_DECODER])
    computed = Evaluator(program).run(list(program.example_inputs))
    value = dict(zip(program.output_names, computed, strict=True))[STATES]
    made = _finished(part, program, {_GIVEN: value})
    past = [name for name in made.input_names if name not in _OF_DECODER]
    _refuse(made, past, "the decoder", "the encoder's input past its output")
    made.names = {_NEW_IDS: _IDS, **({_MASK: f"encoder_{_MASK}"} if _MASK in made.input_names else {})}
    made.dynamic[_GIVEN] = dict(program.dynamic.get(_IDS, {}))
    return made


def _returns(program: Program, name: str, old: str) -> None:
    """Leaves one output, under another name."""
    outputs = dict(zip(program.output_names, program.output_nodes, strict=True))
    (output,) = program.graph.find_nodes(op="output")
    output.args = ((outputs[old],),)
    output.meta = {}
    program.out_spec = pytree.tree_flatten({name: 0})[1]


def _refuse(part: Program, inputs: list[str], reader: str, what: str) -> None:
    if inputs:
        raise InputError(
            f"{reader} reads {what}, {inputs[0]!r}: it is no program of its own",
            at=part.source,
            remedy="run encoder and decoder as one graph",
        )


def _read_sizes_elsewhere(program: Program, places: list[fx.Node]) -> None:
    """Sizes that are read off other inputs are read off these."""
    for old in program.graph.find_nodes(op="placeholder"):
        for user in [u for u in old.users if u.target is _SIZE and old not in places]:
            size = user.meta["val"].node.expr
            found = ((p, d) for p in places for d, s in enumerate(p.meta["val"].shape) if size_of(s) == size)
            if (place := next(found, None)) is not None:
                user.args = place


def _finished(part: Program, program: Program, added: Mapping[str, Tensor]) -> Program:
    """The part without what nothing reads any more, its inputs, example and specification reduced to what is left."""
    remove_dead_calls(part.graph)
    for name in part.info.keys() - part.weight_nodes().keys():
        del part.weights[name], part.info[name]
    examples = {**dict(zip(program.input_names, program.example_inputs, strict=True)), **added}
    for node in part.graph.find_nodes(op="placeholder"):
        if not node.users:
            part.graph.erase_node(node)
    names = part.input_names
    part.example_inputs = tuple(examples[name] for name in names)
    part.in_spec = pytree.tree_flatten(((), dict.fromkeys(names, 0)))[1]
    part.arg_names = names
    part.dynamic = {name: dims for name, dims in part.dynamic.items() if name in names}
    part.names = {name: outside for name, outside in part.names.items() if name in names}
    part.caches = {}
    part.graph.lint()
    return part
