"""What the `.flat` language means: samples, dims, phases, bindings, and text of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, IntegerAttr, ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation

from flatc.builder import Graph, causal, window
from flatc.dialects import attn
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.frontend import load_graph, parse_flat, summarize

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def function(module: ModuleOp) -> FuncOp:
    (op,) = module.ops
    assert isinstance(op, FuncOp)
    return op


def ops(module: ModuleOp, kind: type[Operation]) -> list[Operation]:
    return [op for op in module.walk() if isinstance(op, kind)]


def arguments(module: ModuleOp) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Kind, shape and element type of each argument by name."""
    found: dict[str, tuple[str, tuple[int, ...], str]] = {}
    graph = function(module)
    assert graph.arg_attrs is not None
    for argument, attributes in zip(graph.body.block.args, graph.arg_attrs, strict=True):
        assert isinstance(attributes, DictionaryAttr)
        name, kind = attributes.data["flat.name"], attributes.data["flat.kind"]
        assert isinstance(name, StringAttr)
        assert isinstance(kind, StringAttr)
        found[name.data] = kind.data, attn.shape_of(argument), str(attn.element_type_of(argument))
    return found


def dims(module: ModuleOp) -> dict[str, int]:
    attribute = function(module).attributes["flat.dims"]
    assert isinstance(attribute, DictionaryAttr)
    return {name: n.value.data for name, n in attribute.data.items() if isinstance(n, IntegerAttr)}


def results(module: ModuleOp) -> list[tuple[int, ...]]:
    (end,) = ops(module, ReturnOp)
    return [attn.shape_of(value) for value in end.operands]


def result(expression: str, declarations: str = "") -> tuple[int, ...]:
    """The shape of an expression over x [2, 8, 64] and q, k, v [2, 4, 8, 16]."""
    text = f"graph g\ninput x : [2, 8, 64]\ninput q, k, v : [2, 4, 8, 16]\n{declarations}\ny = {expression}\noutput y"
    return results(parse_flat(text, "g.flat"))[0]


SAMPLES = {
    "bert_base": {None: [(64, 12, 512, 64)]},
    "bert_base_layer": {None: [(8, 384, 768)]},
    "llama3_8b_attention": {"prefill": [(1, 8192, 4096)], "decode": [(1, 1, 4096)]},
    "llama3_8b_gqa": {"prefill": [(1, 32, 8192, 128)], "decode": [(1, 32, 1, 128)]},
    "variants": {None: [(1, 8, 1024, 64)] * 8},
    "whisper_cross_attention": {"prefill": [(4, 4, 768)], "decode": [(4, 1, 768)]},
}


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.flat")} >= SAMPLES.keys()


@pytest.mark.parametrize(
    ("name", "phase", "shapes"),
    [(name, phase, shapes) for name, phases in SAMPLES.items() for phase, shapes in phases.items()],
)
def test_samples(name: str, phase: str | None, shapes: list[tuple[int, ...]]):
    assert results(load_graph(EXAMPLES / f"{name}.flat", phase=phase)) == shapes


def test_whisper_decode_sees_225_own_keys_under_causal_and_1500_foreign_ones_unmasked():
    module = load_graph(EXAMPLES / "whisper_cross_attention.flat", phase="decode")
    assert [attn.shape_of(op.results[0])[3] for op in ops(module, attn.LogitOp)] == [225, 1500]
    assert [str(op) for op in ops(module, attn.MaskOp) if "causal(offset = 224)" in str(op)]
    assert len(ops(module, attn.MaskOp)) == 1


def test_text_and_builder_give_the_same_module():
    text = """graph block
dtype bf16, softmax f32
input x : [1, 7, 64]
weight w : [64, 64]
q = heads(x @ w, 4)
a = attention(q, q, q, mask = causal & window(3))
y = x + merge(a) @ w
output y
"""
    g = Graph("block", dtype="bf16", softmax="f32")
    x, w = g.input("x", [1, 7, 64]), g.weight("w", [64, 64])
    q = g.heads(x @ w, 4)
    g.output(x + g.merge(g.attention(q, q, q, mask=causal() & window(3))) @ w, names=["y"])
    assert parse_flat(text, "g.flat").is_structurally_equivalent(g.module())


def test_declarations_keep_kind_shape_and_type():
    text = "graph g\ndim B = 2, P = 0\ndtype bf16, softmax f32\ninput x : [B, 3]\ninput pad : bool[B, 3]\n"
    text += "weight a, b : f32[3 * 4]\ncache c : [B, 1, P, 8]\noutput x"
    assert arguments(parse_flat(text, "g.flat")) == {
        "x": ("input", (2, 3), "bf16"),
        "pad": ("input", (2, 3), "i1"),
        "a": ("weight", (12,), "f32"),
        "b": ("weight", (12,), "f32"),
        "c": ("cache", (2, 1, 0, 8), "bf16"),
    }


def test_the_default_type_is_f32():
    assert arguments(parse_flat("graph g\ninput x : [1]\noutput x", "g"))["x"] == ("input", (1,), "f32")


def test_outputs_keep_their_names_and_order():
    module = parse_flat("graph g\ninput x, z : [1]\na = x + z\noutput a, x\noutput z", "g")
    assert function(module).attributes["flat.names"] == ArrayAttr([StringAttr(n) for n in ("a", "x", "z")])


# Dims and phases

LAYER = """graph g
dim B = 2, T = P + S, E = H * D
phase prefill : S = 8, P = 0
phase decode : S = 1, P = 8
dim H = 4, D = 16
input x : [B, T, E]
output x
"""


def test_the_first_phase_is_the_default_and_dims_may_be_used_above_their_definition():
    assert dims(parse_flat(LAYER, "g")) == {"B": 2, "T": 8, "E": 64, "S": 8, "P": 0, "H": 4, "D": 16}


@pytest.mark.parametrize(
    ("phase", "bindings", "shape"),
    [
        ("prefill", {}, (2, 8, 64)),
        ("decode", {}, (2, 9, 64)),
        ("decode", {"P": 100}, (2, 101, 64)),
        ("decode", {"T": 5}, (2, 5, 64)),
        (None, {"B": 1, "D": 32}, (1, 8, 128)),
    ],
)
def test_a_binding_wins_over_the_phase_and_other_dims_follow_it(
    phase: str | None, bindings: dict[str, int], shape: tuple[int, ...]
):
    assert arguments(parse_flat(LAYER, "g", phase=phase, bindings=bindings))["x"][1] == shape


def test_a_phase_wins_over_dim():
    text = "graph g\nphase p : S = 3\nphase r : T = 1\ndim S = 7\ninput x : [S]\noutput x"
    assert arguments(parse_flat(text, "g", phase="p"))["x"][1] == (3,)
    assert arguments(parse_flat(text, "g", phase="r"))["x"][1] == (7,)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_division_is_exact_or_refused(a: int, b: int):
    text = "graph g\ndim A = 1, B = 1, C = A / B\ninput x : [1]\noutput x"
    if a % b:
        with pytest.raises(FlatcError, match=f"{a} is not divisible by {b}"):
            parse_flat(text, "g", bindings={"A": a, "B": b})
    else:
        assert dims(parse_flat(text, "g", bindings={"A": a, "B": b}))["C"] == a // b


def test_a_long_chain_of_dims_needs_no_deep_recursion():
    chain = "\n".join(f"dim a{i} = a{i + 1} + 1" for i in range(3000))
    assert dims(parse_flat(f"graph g\n{chain}\ndim a3000 = 0\ninput x : [a0]\noutput x", "g"))["a0"] == 3000


def test_summary_lists_what_a_user_may_choose():
    text = str(summarize(EXAMPLES / "llama3_8b_gqa.flat"))
    assert text.splitlines() == [
        "graph llama3_8b_gqa",
        "phase prefill (default): B = 1, H = 32, KV = 8, D = 128, T = 8192, S = 8192, P = 0",
        "phase decode: B = 1, H = 32, KV = 8, D = 128, T = 8193, S = 1, P = 8192",
    ]


# Expressions


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("heads(x, 2 * 2)", (2, 4, 8, 16)),
        ("merge(q)", (2, 8, 64)),
        ("append(k, v)", (2, 4, 16, 16)),
        ("rope(q, start = 3, base = 1e6, dims = 8, interleaved = true)", (2, 4, 8, 16)),
        ("rmsnorm(layernorm(x, epsilon = 1e-5))", (2, 8, 64)),
        ("silu(relu(sigmoid(tanh(gelu_tanh(gelu(x))))))", (2, 8, 64)),
        ("x * 2 + 0.5 * x / 4", (2, 8, 64)),
        ("2 * 3 * x * x", (2, 8, 64)),
        ("cast(x, bf16)", (2, 8, 64)),
        ("attend(logit(q, k, scale = 1), v)", (2, 4, 8, 16)),
        ("attention(q, k, v, mask = causal | prefix(4), scale = 1 / sqrt(16))", (2, 4, 8, 16)),
        ("attention(q, k, v, mask = window(4, 2, offset = -1) & chunk(4), softcap = 5)", (2, 4, 8, 16)),
        ("attention(q, k, v, mask = causal(offset = 1) & (window(2) | first(1)))", (2, 4, 8, 16)),
        ("attention(q, k, v, bias = alibi + logit(q, k) + alibi(offset = 0))", (2, 4, 8, 16)),
        ("attention(\n  q,  # queries\n  k,\n  v,\n)", (2, 4, 8, 16)),
    ],
)
def test_expressions(expression: str, shape: tuple[int, ...]):
    assert result(expression) == shape


def test_masks_and_biases_can_be_named():
    assert result("attention(q, k, v, mask = m & causal, bias = b)", "m = window(3)\nb = alibi") == (2, 4, 8, 16)


def test_a_bool_tensor_is_a_mask():
    assert result("attention(q, k, v, mask = m & causal)", "input m : bool[8, 8]") == (2, 4, 8, 16)


@pytest.mark.parametrize("expression", ["x @ w + b", "x + x @ w + b", "(x @ w) + b + x"])
def test_a_vector_added_right_after_a_product_is_its_bias(expression: str):
    text = f"graph g\ninput x : [2, 8]\nweight w : [8, 8]\nweight b : [8]\ny = {expression}\noutput y"
    (linear,) = ops(parse_flat(text, "g"), attn.LinearOp)
    assert isinstance(linear, attn.LinearOp)
    assert linear.bias is not None
    assert len(ops(parse_flat(text, "g"), attn.AddOp)) == expression.count("+") - 1


def test_names_may_be_reassigned():
    assert result("k", "k = append(k, k)\nk = append(k, k)") == (2, 4, 32, 16)


def test_every_op_and_argument_knows_where_it_was_written():
    module = load_graph(EXAMPLES / "variants.flat")
    places = [position_of(op) for op in module.walk() if op.name.startswith("attn.")]
    assert all(place is not None and place.file.endswith("variants.flat") for place in places)
    assert [place.line for place in places if place] == sorted(place.line for place in places if place)


# Text of every kind

PLAIN = "graph g\ninput x : [2]\ny = x + x\noutput y"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN + "\n",
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        PLAIN.replace(" ", "\t"),
        PLAIN.replace("\n", "   # comment\n\n\n"),
        PLAIN.replace("x + x", "x +x"),
    ],
    ids=["newline", "crlf", "cr", "bom", "tabs", "comments", "spacing"],
)
def test_layout_does_not_matter(text: str):
    assert parse_flat(text, "g").is_structurally_equivalent(parse_flat(PLAIN, "g"))


def test_the_deepest_nesting_that_is_allowed_elaborates():
    assert result(f"{'gelu(x + x * (' * 16}x{'))' * 16}") == (2, 8, 64)
    assert result(f"attention(q, k, v, mask = {'(causal & (causal | ' * 15}causal{'))' * 15})") == (2, 4, 8, 16)
    assert result(f"x * {'(1 + 2 * -(' * 15}1{'))' * 15}") == (2, 8, 64)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        PLAIN + "\nz = " + "(" * 5000 + "x" + ")" * 5000,
        PLAIN + "\nz = " + "-" * 100_000 + "x",
        "\0" * 1000,
        "graph g\n" + "=" * 300_000,
        "x" * 1_000_000,
        "graph g\ninput x : [" + "9" * 100_000 + "]",
        "graph g\ndim a = 9" + " * 999999999999" * 1000,
        "[]" * 20_000,
        "\x1c\x85\u2028\u00a0",
        "graph g\ninput x : [٣]",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_absurd_text_is_refused_in_one_clear_message(text: str):
    with pytest.raises(FlatcError) as caught:
        parse_flat(text, "g")
    assert len(str(caught.value)) < 5000


STATEMENT_WORDS = ["graph", "dim", "phase", "dtype", "input", "weight", "cache", "output", "softmax"]
CALL_WORDS = ["attention", "heads", "merge", "causal", "window", "prefix", "mask", "scale", "bias", "alibi", "sqrt"]
OTHER_WORDS = ["g", "x", "y", "q", "E", "S", "1", "8", "0.5", "true", "bf16", "f32", *"=:,()[]+-*/@&|"]
WORDS = [*STATEMENT_WORDS, *CALL_WORDS, *OTHER_WORDS]


def attempt(text: str) -> FlatcError | None:
    """The user's error of a text, if any; no other exception may come out."""
    try:
        parse_flat(text, "g")
    except FlatcError as error:
        return error
    return None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "\n", "\n", "%", "\0", "é"]), max_size=60))
def test_no_sequence_of_words_raises_anything_else(words: list[str]):
    for text in (" ".join(words), f"{PLAIN}\n{' '.join(words)}"):
        error = attempt(text)
        assert error is None or (error.position is not None and str(error))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damage_to_a_sample_raises_anything_else(data: st.DataObject):
    text = (EXAMPLES / "variants.flat").read_text()
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 30))
    patch = data.draw(st.one_of(st.text(max_size=10), st.sampled_from(WORDS)))
    error = attempt(text[:start] + patch + text[start + length :])
    if error is not None:
        assert error.position is not None
        assert 1 <= error.position.line <= text.count("\n") + 12


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_no_text_raises_anything_else(text: str):
    with pytest.raises(FlatcError):
        parse_flat(text, "g")
