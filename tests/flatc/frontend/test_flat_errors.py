"""Every kind of mistake in a `.flat` file, and the exact message it gives.

The table reads as documentation: a mistake is written below the prelude, and what flatc says stands beside it.
"""

from __future__ import annotations

import pytest

from flatc.dialects.diagnostics import FlatcError
from flatc.frontend import parse_flat

PRELUDE = """\
graph g
dim B = 2, S = 8, H = 4, D = 16, E = H * D
input x : [B, S, E]
input q, k, v : [B, H, S, D]
weight w : [E, E]
"""

STATEMENTS_AND_WORDS: list[tuple[str, str]] = [
    (
        "weigth u : [E, E]",
        """\
g.flat:6:1: error: unknown statement 'weigth'
 6 | weigth u : [E, E]
   | ^~~~~~
   = help: did you mean 'weight'?""",
    ),
    (
        "u : [E, E]",
        """\
g.flat:6:3: error: unexpected ':'
 6 | u : [E, E]
   |   ^
   = note: expected '='
   = help: declare a tensor as 'input u : [...]'""",
    ),
    (
        "output",
        """\
g.flat:6:7: error: the line stops in the middle of a statement
 6 | output
   |       ^
   = note: expected a name""",
    ),
    (
        "output nix",
        """\
g.flat:6:8: error: unknown name 'nix'
 6 | output nix
   |        ^~~""",
    ),
    (
        "x",
        """\
g.flat:6:2: error: the line stops in the middle of a statement
 6 | x
   |  ^
   = note: expected '='""",
    ),
    (
        "@ x",
        """\
g.flat:6:1: error: a statement starts with a word, not with '@'
 6 | @ x
   | ^
   = note: statements are graph, dim, phase, dtype, input, weight, cache, output, and 'name = expression'""",
    ),
    (
        "input input : [B]",
        """\
g.flat:6:7: error: 'input' is a reserved word
 6 | input input : [B]
   |       ^~~~~
   = help: choose another name""",
    ),
    (
        "größe = x",
        """\
g.flat:6:1: error: 'größe' cannot be a name
 6 | größe = x
   | ^~~~~
   = help: names are made of the letters a-z and A-Z, digits and '_'""",
    ),
    (
        "y = gelu(x))",
        """\
g.flat:6:12: error: this ')' closes nothing
 6 | y = gelu(x))
   |            ^""",
    ),
    (
        "graph h",
        """\
g.flat:6:7: error: a file holds one graph
 6 | graph h
   |       ^
   = note: the first graph is 'g'""",
    ),
]

BRACKETS: list[tuple[str, str]] = [
    (
        "y = heads(x @ w, H",
        """\
g.flat:6:10: error: this '(' is never closed
 6 | y = heads(x @ w, H
   |          ^""",
    ),
    (
        """\
y = heads(x @ w, H
z = x""",
        """\
g.flat:6:10: error: this '(' is never closed
 6 | y = heads(x @ w, H
   |          ^""",
    ),
    (
        "input u : [B, S)",
        """\
g.flat:6:16: error: ')' cannot close '['
 6 | input u : [B, S)
   |                ^
   = note: the '[' is at g.flat:6:11""",
    ),
    (
        "y = gelu(x]",
        """\
g.flat:6:11: error: ']' cannot close '('
 6 | y = gelu(x]
   |           ^
   = note: the '(' is at g.flat:6:9""",
    ),
]

EXPRESSIONS: list[tuple[str, str]] = [
    (
        "y = x @@ w",
        """\
g.flat:6:8: error: unexpected '@'
 6 | y = x @@ w
   |        ^
   = note: expected an expression""",
    ),
    (
        "y = x +",
        """\
g.flat:6:8: error: the line stops in the middle of a statement
 6 | y = x +
   |        ^
   = note: expected an expression
   = help: a line break ends a statement unless a bracket is open""",
    ),
    (
        "y = x // comment",
        """\
g.flat:6:8: error: unexpected '/'
 6 | y = x // comment
   |        ^
   = note: expected an expression
   = help: comments start with '#'""",
    ),
    (
        "y = 'x'",
        """\
g.flat:6:5: error: unexpected quotation mark
 6 | y = 'x'
   |     ^
   = help: there are no strings; write the bare word""",
    ),
    (
        "y = x \u2212 x",
        """\
g.flat:6:7: error: unexpected character U+2212 (MINUS SIGN)
 6 | y = x \u2212 x
   |       ^
   = help: write '-' instead""",
    ),
    (
        "y = attention(q, mask = causal, k, v)",
        """\
g.flat:6:33: error: an argument follows an option
 6 | y = attention(q, mask = causal, k, v)
   |                                 ^
   = help: options such as 'name = value' come last""",
    ),
    (
        "y = 99999999999999999999 * x",
        """\
g.flat:6:5: error: the number '99999999999999999999' is too large
 6 | y = 99999999999999999999 * x
   |     ^~~~~~~~~~~~~~~~~~~~
   = help: at most 9223372036854775807""",
    ),
]

DECLARATIONS: list[tuple[str, str]] = [
    (
        "input x : [B]",
        """\
g.flat:6:7: error: 'x' is declared twice
 6 | input x : [B]
   |       ^
   = note: the first declaration is at g.flat:3:7""",
    ),
    (
        "weight S : [E]",
        """\
g.flat:6:8: error: 'S' is a dim already
 6 | weight S : [E]
   |        ^
   = note: it is defined at g.flat:2:12
   = help: choose another name""",
    ),
    (
        "weight causal : [E]",
        """\
g.flat:6:8: error: 'causal' is a mask of the language
 6 | weight causal : [E]
   |        ^~~~~~
   = help: choose another name""",
    ),
    (
        "input u : flaot[B]",
        """\
g.flat:6:11: error: unknown type 'flaot'
 6 | input u : flaot[B]
   |           ^~~~~
   = help: the types are f64, f32, f16, bf16, f8E4M3FN, f8E5M2, i8, i32, bool""",
    ),
    (
        "input u : fp8[B]",
        """\
g.flat:6:11: error: unknown type 'fp8'
 6 | input u : fp8[B]
   |           ^~~
   = help: write f8E4M3FN or f8E5M2""",
    ),
    (
        "y = attention(q, q, q, dropout = 0.1)",
        """\
g.flat:6:24: error: 'dropout' is not supported: dropout belongs to training, and flatc compiles inference
 6 | y = attention(q, q, q, dropout = 0.1)
   |                        ^~~~~~~""",
    ),
    (
        "y = linear_attention(q, q, q)",
        """\
g.flat:6:5: error: 'linear_attention' is not supported: linear attention has no scores; flatc compiles attention \
that scores every visible pair of query and key
 6 | y = linear_attention(q, q, q)
   |     ^~~~~~~~~~~~~~~~""",
    ),
    (
        "y = attention(q, q, q, topk = 64)",
        """\
g.flat:6:24: error: 'topk' is not supported: top-k attention chooses keys by their scores; flatc compiles attention \
that scores every visible pair of query and key
 6 | y = attention(q, q, q, topk = 64)
   |                        ^~~~""",
    ),
    (
        "y = disentangled_attention(q, q, q)",
        """\
g.flat:6:5: error: 'disentangled_attention' is not supported: disentangled attention (DeBERTa) multiplies queries \
and keys by positions too, which is more than one product
 6 | y = disentangled_attention(q, q, q)
   |     ^~~~~~~~~~~~~~~~~~~~~~""",
    ),
    (
        "dtype bf16, accumulate i8",
        """\
g.flat:6:24: error: products cannot accumulate in i8
 6 | dtype bf16, accumulate i8
   |                        ^~
   = help: the types for accumulate are f64, f32, f16, bf16""",
    ),
    (
        "input u : [B, Q]",
        """\
g.flat:6:15: error: unknown dim 'Q'
 6 | input u : [B, Q]
   |               ^
   = help: the dims are B, S, H, D, E""",
    ),
    (
        "input u : [B, S / 3]",
        """\
g.flat:6:15: error: 8 is not divisible by 3
 6 | input u : [B, S / 3]
   |               ^~~~~
   = note: the remainder is 2; a whole number is needed here""",
    ),
    (
        "input u : [B - 5]",
        """\
g.flat:6:12: error: a dim is -3
 6 | input u : [B - 5]
   |            ^~~~~
   = help: it cannot be negative""",
    ),
    (
        "input u : [2 * 1000000000000]",
        """\
g.flat:6:11: error: dim 0 of [2000000000000] is 2000000000000
 6 | input u : [2 * 1000000000000]
   |           ^~~~~~~~~~~~~~~~~~~
   = help: the largest dim is 2**40""",
    ),
    (
        "dtype f32, sofmax f32",
        """\
g.flat:6:12: error: unknown role 'sofmax' of a type
 6 | dtype f32, sofmax f32
   |            ^~~~~~
   = help: did you mean 'softmax'?""",
    ),
    (
        "dtype bf16, softmax i8",
        """\
g.flat:6:21: error: scores cannot be computed in i8
 6 | dtype bf16, softmax i8
   |                     ^~
   = help: the types for softmax are f64, f32, f16, bf16""",
    ),
]

DIMS_AND_PHASES: list[tuple[str, str]] = [
    (
        "dim N = S / 3",
        """\
g.flat:6:9: error: 8 is not divisible by 3
 6 | dim N = S / 3
   |         ^~~~~
   = note: the remainder is 2; a whole number is needed here""",
    ),
    (
        "dim N = M, M = N",
        """\
g.flat:6:5: error: dim 'N' is defined by itself
 6 | dim N = M, M = N
   |     ^
   = note: N <- M <- N""",
    ),
    (
        "dim N = -1",
        """\
g.flat:6:9: error: dim 'N' is -1
 6 | dim N = -1
   |         ^~
   = help: it cannot be negative""",
    ),
    (
        "dim N = 1.5",
        """\
g.flat:6:9: error: 1.5 is not a whole number
 6 | dim N = 1.5
   |         ^~~""",
    ),
    (
        "dim B = 3",
        """\
g.flat:6:5: error: dim 'B' is already defined in a dim statement
 6 | dim B = 3
   |     ^
   = note: the first definition is at g.flat:2:5""",
    ),
    (
        """\
phase p : S = 4
phase p : S = 5""",
        """\
g.flat:7:7: error: phase 'p' is already declared
 7 | phase p : S = 5
   |       ^""",
    ),
    (
        """\
phase p : S = 5
phase r : N = 4
input u : [N]""",
        """\
g.flat:8:12: error: dim 'N' has no value in phase 'p'
 8 | input u : [N]
   |            ^
   = help: give it one in the phase, in a dim statement, or with --bind N=...""",
    ),
]

NAMES_AND_KINDS: list[tuple[str, str]] = [
    (
        "y = xx + x",
        """\
g.flat:6:5: error: unknown name 'xx'
 6 | y = xx + x
   |     ^~
   = help: did you mean 'x'?""",
    ),
    (
        """\
y = z
z = x""",
        """\
g.flat:6:5: error: 'z' is used before it is defined
 6 | y = z
   |     ^
   = note: it is defined at g.flat:7:1""",
    ),
    (
        "y = S",
        """\
g.flat:6:5: error: a number cannot be assigned
 6 | y = S
   |     ^
   = help: name it with 'dim', or write it where it is used""",
    ),
    (
        "y = gelu",
        """\
g.flat:6:5: error: 'gelu' is a function, not a tensor
 6 | y = gelu
   |     ^~~~
   = help: call it: gelu(...)""",
    ),
    (
        "y = attention(q, causal, v)",
        """\
g.flat:6:18: error: 'causal' is a mask, not a tensor
 6 | y = attention(q, causal, v)
   |                  ^~~~~~
   = help: pass it to attention as 'mask = ...'""",
    ),
    (
        "y = gelo(x)",
        """\
g.flat:6:5: error: unknown function 'gelo'
 6 | y = gelo(x)
   |     ^~~~
   = help: did you mean 'gelu'?""",
    ),
    (
        "y = x(x)",
        """\
g.flat:6:5: error: 'x' is a tensor, not a function
 6 | y = x(x)
   |     ^""",
    ),
    (
        "y = heads(x, x)",
        """\
g.flat:6:14: error: 'x' is a tensor, not a number
 6 | y = heads(x, x)
   |              ^""",
    ),
    (
        "y = x - x",
        """\
g.flat:6:5: error: '-' does not combine two tensors
 6 | y = x - x
   |     ^~~~~
   = help: tensors take + * @ with tensors, and * / with numbers""",
    ),
]

CALLS: list[tuple[str, str]] = [
    (
        "y = heads(x)",
        """\
g.flat:6:5: error: 'heads' takes 2 arguments (x, heads), not 1
 6 | y = heads(x)
   |     ^~~~~~~~""",
    ),
    (
        "y = attention(q, k, v, msk = causal)",
        """\
g.flat:6:24: error: 'attention' has no option 'msk'
 6 | y = attention(q, k, v, msk = causal)
   |                        ^~~
   = help: did you mean 'mask'?""",
    ),
    (
        "y = attention(q, k, v, mask = casual)",
        """\
g.flat:6:31: error: unknown mask 'casual'
 6 | y = attention(q, k, v, mask = casual)
   |                               ^~~~~~
   = help: did you mean 'causal'?""",
    ),
    (
        "y = attention(q, k, v, mask = causal, mask = causal)",
        """\
g.flat:6:39: error: option 'mask' is given twice
 6 | y = attention(q, k, v, mask = causal, mask = causal)
   |                                       ^~~~""",
    ),
    (
        "y = attention(q, k, v, mask = alibi)",
        """\
g.flat:6:31: error: 'alibi' is a bias, not a mask
 6 | y = attention(q, k, v, mask = alibi)
   |                               ^~~~~
   = help: pass it to attention as 'bias = ...'""",
    ),
    (
        "y = attention(q, k, v, mask = window(0))",
        """\
g.flat:6:31: error: window(left = 0, right = 0, offset = 0) shows no key to any row
 6 | y = attention(q, k, v, mask = window(0))
   |                               ^~~~~~~~~
   = help: make left at least 1""",
    ),
    (
        "y = attention(q, k, v, scale = 1 / 0)",
        """\
g.flat:6:32: error: division of 1 by zero
 6 | y = attention(q, k, v, scale = 1 / 0)
   |                                ^~~~~""",
    ),
    (
        "y = rope(q, interleaved = maybe)",
        """\
g.flat:6:27: error: 'maybe' is not true or false
 6 | y = rope(q, interleaved = maybe)
   |                           ^~~~~
   = help: write one of true, false""",
    ),
    (
        "y = cast(x, f33)",
        """\
g.flat:6:13: error: 'f33' is not a type
 6 | y = cast(x, f33)
   |             ^~~
   = help: did you mean 'f32'?""",
    ),
]

SHAPES: list[tuple[str, str]] = [
    (
        "y = x @ x",
        """\
g.flat:6:5: error: cannot multiply [2, 8, 64] by [2, 8, 64]
 6 | y = x @ x
   |     ^~~~~
   = note: the last dim of the left side is 64, the first of the right side is 8""",
    ),
    (
        "y = x + q",
        """\
g.flat:6:5: error: cannot combine [2, 8, 64] with [2, 4, 8, 16] element by element
 6 | y = x + q
   |     ^~~~~
   = note: dim -3 is 2 on the left side and 4 on the right side""",
    ),
    (
        "y = heads(x, 5)",
        """\
g.flat:6:5: error: cannot split [2, 8, 64] into 5 heads
 6 | y = heads(x, 5)
   |     ^~~~~~~~~~~
   = note: the last dim is 64, which 5 does not divide""",
    ),
    (
        "y = attention(x, k, v)",
        """\
g.flat:6:5: error: q has shape [2, 8, 64], expected 4 dims: [batch, heads, queries, d_qk]
 6 | y = attention(x, k, v)
   |     ^~~~~~~~~~~~~~~~~~
   = help: use heads(x, H) to split [batch, sequence, H * d] into heads""",
    ),
]

TABLE = [
    *STATEMENTS_AND_WORDS,
    *BRACKETS,
    *EXPRESSIONS,
    *DECLARATIONS,
    *DIMS_AND_PHASES,
    *NAMES_AND_KINDS,
    *CALLS,
    *SHAPES,
]


def message(text: str, **options: object) -> str:
    with pytest.raises(FlatcError) as caught:
        parse_flat(text, "g.flat", **options)  # pyright: ignore[reportArgumentType]
    return str(caught.value)


@pytest.mark.parametrize(("mistake", "expected"), TABLE, ids=[mistake for mistake, _ in TABLE])
def test_message(mistake: str, expected: str):
    assert message(f"{PRELUDE}{mistake}\noutput x\n") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "g.flat:1:1: error: the file holds no graph"),
        ("# nothing\n\n", "g.flat:1:10: error: the file holds no graph"),
        ("dim B = 1\ngraph g\n", "g.flat:1:5: error: the file must start with 'graph NAME'"),
        ("graph g\ninput x : [2, 2]\n", "g.flat:1:7: error: graph 'g' has no output"),
        ("graph g\ndtype f99\n", "g.flat:2:7: error: unknown type 'f99'"),
        ("graph g\ndtype f32\ndtype f16\n", "g.flat:3:7: error: the types are already set"),
        ("graph g\ninput x : [1]\noutput x, x\n", "g.flat:3:11: error: 'x' is already an output"),
    ],
)
def test_whole_files(text: str, expected: str):
    assert message(text).startswith(expected)


def test_independent_mistakes_are_all_reported_in_the_order_of_the_text():
    text = message(f"{PRELUDE}y = x @ x\nz = gelo(x)\ninput x : [B]\noutput x\n")
    assert [line for line in text.splitlines() if ": error: " in line] == [
        "g.flat:6:5: error: cannot multiply [2, 8, 64] by [2, 8, 64]",
        "g.flat:7:5: error: unknown function 'gelo'",
        "g.flat:8:7: error: 'x' is declared twice",
    ]


def test_a_mistake_is_not_repeated_where_its_name_is_read():
    assert message(f"{PRELUDE}y = x @ x\nz = y + x\na = gelu(z)\noutput a\n").count("error:") == 1


def test_an_unclosed_bracket_does_not_hide_the_next_mistake():
    text = message(f"{PRELUDE}y = heads(x @ w, H\nz = x @@ w\noutput x\n")
    assert [line for line in text.splitlines() if ": error: " in line] == [
        "g.flat:6:10: error: this '(' is never closed",
        "g.flat:7:8: error: unexpected '@'",
    ]


def test_a_statement_cut_by_a_line_break_is_one_mistake():
    assert message(f"{PRELUDE}y = x +\n    x\noutput y\n").count("error:") == 1


def test_at_most_ten_mistakes_are_shown():
    assert message(PRELUDE + "y = x @ x\n" * 30).count("error:") == 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"phase": "decod"},
            "error: graph 'g' has no phase 'decod'\n"
            "  = note: its phases are prefill, decode\n"
            "  = help: did you mean 'decode'?",
        ),
        (
            {"bindings": {"SS": 3}},
            "error: cannot bind 'SS': graph 'g' has no such dim\n  = note: its dims are S\n  = help: did you mean 'S'?",
        ),
        (
            {"bindings": {"S": -3}},
            "error: cannot bind S=-3: a dim is a whole number from 0 to 9223372036854775807",
        ),
        (
            {"bindings": {"S": 0}},
            "g.flat:4:11: error: dim 0 of [0] is 0\n"
            " 4 | input x : [S]\n"
            "   |           ^~~\n"
            "   = help: every dim must be at least 1; only the length of a rank-4 cache may be 0",
        ),
    ],
)
def test_choices_from_outside(options: dict[str, object], expected: str):
    text = "graph g\nphase prefill : S = 8\nphase decode : S = 1\ninput x : [S]\noutput x\n"
    assert message(text, **options) == expected


def test_a_graph_without_phases():
    assert message("graph g\ninput x : [1]\noutput x", phase="p") == (
        "error: graph 'g' has no phases, so there is no phase 'p'\n  = help: leave --phase out"
    )


def test_a_line_too_long_to_show_is_quoted_where_it_matters():
    text = message(f"{PRELUDE}y = {'x + ' * 100}zz\noutput y")
    assert text.splitlines()[0] == "g.flat:6:405: error: unknown name 'zz'"
    assert text.splitlines()[1] == "   = note: the text there is '...x + x + x + x + x + zz...'"
