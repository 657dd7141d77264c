"""Attentions drawn at random, as `.flat` text beside what they mean: see `tests/test_variants.py`.

drawn = data.draw(attentions())
drawn.text                          # a graph that a user might write
drawn.expected(inputs)              # its outputs by name, by `float64_attention`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.float64_attention import Floats, Sees, Variant, alibi, t5_relative

Inputs = Mapping[str, NDArray[Any]]
SHAPES = {
    "[S, T]": ("S", "T"),
    "[H, S, T]": ("H", "S", "T"),
    "[B, 1, 1, T]": ("B", 1, 1, "T"),
    "[B, 1, S, T]": ("B", 1, "S", "T"),
    "[H, S, 1]": ("H", "S", 1),
    "[T]": ("T",),
}
STORAGE = (("f32", "f32"), ("bf16", "f32"), ("f16", "f32"), ("f16", "f16"), ("bf16", "bf16"))
COLUMNS = ("B, KV, T", "B, 1, T", "1, KV, T", "1, 1, T")
KEYED = ("", "", "f8E4M3FN", "f8E5M2", "i8", "f16", "f32")


@dataclass(frozen=True)
class Sizes:
    """Sizes of an attention; `old` rows of the keys are in a cache, where there is one, perhaps in pages."""

    batch: int
    group: int
    kv_heads: int
    queries: int
    keys: int
    d_qk: int
    d_v: int
    cached: bool
    block: int = 0
    """Rows of a block, where the cache lies in pages."""

    @property
    def old(self) -> int:
        return self.keys - self.queries if self.cached else 0

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads

    @property
    def dims(self) -> dict[str, int]:
        """By the names of the language."""
        d = {"B": self.batch, "H": self.heads, "KV": self.kv_heads, "S": self.queries, "T": self.keys}
        pages = -(-self.keys // self.block) if self.block else 0
        paged = {"BLOCK": self.block, "PAGES": pages, "BLOCKS": self.batch * pages + 1} if self.block else {}
        return d | {"P": self.old, "D": self.d_qk, "E": self.d_v} | paged


@dataclass(frozen=True)
class Symbolic:
    """A symbolic mask: its text, and whom it lets see what."""

    text: str
    sees: Sees


@dataclass(frozen=True)
class Data:
    """A bias or mask that takes data: its text, the declaration it needs, and its value [.., S, T]."""

    text: str
    declaration: str
    value: Callable[[Inputs, Sizes], NDArray[Any]]


@dataclass(frozen=True)
class Drawn:
    """A graph and its meaning. `returned` are the stages that it gives, the last always the output."""

    text: str
    sizes: Sizes
    variant: Variant
    biases: tuple[Data, ...]
    masks: tuple[Data, ...]
    returned: tuple[str, ...]

    def expected(self, inputs: Inputs) -> dict[str, Floats]:
        """The outputs by name."""
        q, k, v = (inputs[name] for name in "qkv")
        if self.sizes.cached:
            k, v = (np.concatenate([self._cache(inputs, name), inputs[name]], axis=2) for name in "kv")
        bias: Any = 0.0
        for term in self.biases:
            bias = bias + term.value(inputs, self.sizes)
        variant = replace(
            self.variant,
            bias=bias,
            seen=[mask.value(inputs, self.sizes) for mask in self.masks],
            sink=inputs["sink"].astype(np.float64) if "sink" in inputs else None,
            key_scale=inputs.get("ks"),
            value_scale=inputs.get("vs"),
        )
        stages = variant.stages(q, k, v)
        return {name: stages[name] for name in self.returned}

    def _cache(self, inputs: Inputs, name: str) -> NDArray[Any]:
        """Row r of a sequence in pages is row r % block of the block that its table has at r // block."""
        cache, block = inputs[f"c{name}"], self.sizes.block
        if not block:
            return cache
        rows = [[cache[pages[r // block], :, r % block] for r in range(self.sizes.old)] for pages in inputs["pages"]]
        return np.swapaxes(np.array(rows), 1, 2)


# --- Masks and biases ------------------------------------------------------------------------------------------------


@st.composite
def symbolic_masks(draw: st.DrawFn, depth: int = 2) -> Symbolic:
    """Causal, windows, prefixes and chunks, with offsets or without, joined by & and |."""
    if depth and draw(st.booleans()):
        a, b = draw(symbolic_masks(depth - 1)), draw(symbolic_masks(depth - 1))
        if draw(st.booleans()):
            return Symbolic(f"({a.text} & {b.text})", lambda s, t, o: a.sees(s, t, o) and b.sees(s, t, o))
        return Symbolic(f"({a.text} | {b.text})", lambda s, t, o: a.sees(s, t, o) or b.sees(s, t, o))
    given = draw(st.one_of(st.none(), st.integers(-9, 9)))
    option = "" if given is None else f"offset = {given}"

    def at(row: int, offset: int) -> int:
        return row + (offset if given is None else given)

    n, m = draw(st.integers(1, 12)), draw(st.integers(0, 9))
    behind = f", {option}" if option else ""
    match draw(st.sampled_from(["causal", "window", "window 2", "prefix", "first", "chunk"])):
        case "causal":
            return Symbolic(f"causal({option})" if option else "causal", lambda s, t, o: t <= at(s, o))
        case "window":
            return Symbolic(f"window({n}{behind})", lambda s, t, o: at(s, o) - n < t <= at(s, o))
        case "window 2":
            return Symbolic(f"window({n}, {m}{behind})", lambda s, t, o: at(s, o) - n < t <= at(s, o) + m)
        case "chunk":
            return Symbolic(f"chunk({n}{behind})", lambda s, t, o: at(s, o) // n == t // n)
        case word:
            return Symbolic(f"{word}({n})", lambda s, t, o: t < n)


def documents_of(inputs: Inputs, sizes: Sizes) -> NDArray[np.bool_]:
    """[B, 1, S, T]: whether key and row, which are the last of the keys, have the same document."""
    rows = inputs["doc"][:, sizes.keys - sizes.queries :]
    return rows[:, None, :, None] == inputs["doc"][:, None, None, :]


DOCUMENTS = Data("same(doc)", "input doc : i32[B, T]", documents_of)
PADDING = Data("valid(pad)", "input pad : bool[B, T]", lambda inputs, _: inputs["pad"][:, None, None, :])


def tensor_mask(shape: str) -> Data:
    """A mask that is a tensor."""
    return Data("keep", f"input keep : bool{shape}", lambda inputs, _: inputs["keep"])


def tensor_bias(shape: str) -> Data:
    """A bias that is a tensor, in the storage type."""
    return Data("bias", f"input bias : {shape}", lambda inputs, _: inputs["bias"].astype(np.float64))


def alibi_bias(offset: int | None) -> Data:
    """ALiBi, at a given offset or the default one."""
    text = "alibi" if offset is None else f"alibi(offset = {offset})"

    def value(_: Inputs, s: Sizes) -> Floats:
        return alibi(s.heads, s.queries, s.keys, s.keys - s.queries if offset is None else offset)

    return Data(text, "", value)


def t5_bias(buckets: int, largest: int, *, both: bool) -> Data:
    """T5's buckets."""
    options = f"buckets = {buckets}, max_distance = {largest}, bidirectional = {'true' if both else 'false'}"

    def value(inputs: Inputs, s: Sizes) -> Floats:
        return t5_relative(inputs["table"], s.queries, s.keys, s.keys - s.queries, largest, bidirectional=both)

    return Data(f"t5_relative(table, {options})", f"weight table : [{buckets}, H]", value)


@st.composite
def some_biases(draw: st.DrawFn) -> tuple[Data, ...]:
    every = (
        tensor_bias(draw(st.sampled_from(sorted(SHAPES)))),
        alibi_bias(draw(st.one_of(st.none(), st.integers(-5, 5)))),
        t5_bias(8, draw(st.integers(5, 20)), both=draw(st.booleans())),
    )
    return tuple(bias for bias in every if draw(st.integers(0, 3)) == 0)


@st.composite
def some_masks(draw: st.DrawFn, sizes: Sizes) -> tuple[Data, ...]:
    every = [PADDING, tensor_mask(draw(st.sampled_from(sorted(SHAPES))))]
    if sizes.queries <= sizes.keys:
        every.append(DOCUMENTS)
    return tuple(mask for mask in every if draw(st.integers(0, 3)) == 0)


# --- Graphs ----------------------------------------------------------------------------------------------------------


@st.composite
def some_sizes(draw: st.DrawFn) -> Sizes:
    """Prefill, chunks and decode; primes, single rows, more queries than keys where no cache is grown."""
    cached = draw(st.booleans())
    queries = draw(st.sampled_from([1, 1, 2, 5, 13]))
    keys = queries + draw(st.integers(0, 17)) if cached else draw(st.sampled_from([1, 3, 11, 16, 23]))
    batch, group, kv_heads = draw(st.sampled_from([(1, 1, 1), (2, 3, 2), (1, 4, 1), (3, 1, 2), (1, 2, 3)]))
    d_qk, d_v = draw(st.sampled_from([(4, 4), (8, 3), (5, 16), (80, 24)]))
    block = draw(st.sampled_from([0, 0, 1, 3, 4])) if cached and keys > queries else 0
    return Sizes(batch, group, kv_heads, queries, keys, d_qk, d_v, cached, block)


@st.composite
def attentions(draw: st.DrawFn) -> Drawn:
    """Any attention: its scores changed in the usual order or in another, some stages of them returned."""
    sizes, symbolic = draw(some_sizes()), draw(st.one_of(st.none(), symbolic_masks()))
    masks, biases = draw(some_masks(sizes)), draw(some_biases())
    softcap = draw(st.sampled_from([None, None, 2.0]))
    scale = draw(st.sampled_from([None, None, 0.3]))
    usual = ("softcap", "bias", "mask")
    steps = ("key_scale", *(draw(st.permutations(usual)) if draw(st.integers(0, 3)) == 0 else usual))
    given = {
        "key_scale": ["ks"] * (draw(st.integers(0, 3)) == 0),
        "value_scale": ["vs"] * (draw(st.integers(0, 3)) == 0),
        "softcap": [] if softcap is None else ["2"],
        "bias": [bias.text for bias in biases],
        "mask": [part.text for part in (symbolic, *masks) if part is not None],
    }
    sink = draw(st.integers(0, 2)) == 0
    made = [step for step in steps if given[step]]
    returned = (
        draw(st.lists(st.sampled_from(["raw", *made, "p"]), unique=True, max_size=3)) if draw(st.booleans()) else []
    )
    text = _text(draw, sizes, (*masks, *biases), given, made, [*returned, "a"], scale=scale, sink=sink)
    sees = symbolic.sees if symbolic is not None else None
    variant = Variant(tuple(made), scale, softcap, sees=sees)
    return Drawn(text, sizes, variant, biases, masks, (*returned, "a"))


def _text(
    draw: st.DrawFn,
    sizes: Sizes,
    data: Sequence[Data],
    given: Mapping[str, Sequence[str]],
    made: Sequence[str],
    returned: Sequence[str],
    *,
    scale: float | None,
    sink: bool,
) -> str:
    """The graph: one call of attention where that says it all, else step by step."""
    storage, softmax = draw(st.sampled_from(STORAGE))
    k_type, v_type = draw(st.sampled_from(KEYED)), draw(st.sampled_from(KEYED))
    lines = ["graph drawn", "dim " + ", ".join(f"{name} = {size}" for name, size in sizes.dims.items())]
    lines += [f"dtype {storage}, softmax {softmax}", "input q : [B, H, S, D]"]
    rows = "S" if sizes.cached else "T"
    lines += ["input pages : i32[B, PAGES]"] * (sizes.block > 0)
    for name, kind, depth in (("k", k_type, "D"), ("v", v_type, "E")):
        lines.append(f"input {name} : {kind}[B, KV, {rows}, {depth}]")
        if sizes.block:
            lines += [f"cache c{name} : {kind}[BLOCKS, KV, BLOCK, {depth}]"]
            lines += [f"all_{name} = append(paged(c{name}, pages, keys = P), {name})"]
        elif sizes.cached:
            lines += [f"cache c{name} : {kind}[B, KV, P, {depth}]", f"all_{name} = append(c{name}, {name})"]
    lines += [item.declaration for item in data if item.declaration]
    lines += ["weight sink : [H]"] * sink
    for name, option in (("ks", "key_scale"), ("vs", "value_scale")):
        lines += [f"input {name} : f32[{draw(st.sampled_from(COLUMNS))}]"] * len(given[option])
    k, v = ("all_k", "all_v") if sizes.cached else ("k", "v")
    options = {"scale": "" if scale is None else str(scale), "sink": "sink" if sink else ""}
    options |= {name: "".join(given[name]) for name in ("key_scale", "softcap", "value_scale")}
    options |= {"bias": " + ".join(given["bias"])}
    options |= {"mask": " & ".join(given["mask"])}
    in_order = list(made) == [step for step in ("key_scale", "softcap", "bias", "mask") if step in made]
    if list(returned) == ["a"] and in_order:
        lines.append(f"a = {_call('attention', ['q', k, v], options)}")
    else:
        lines.append(f"raw = {_call('logit', ['q', k], options, 'scale')}")
        scores = "raw"
        for step in made:
            lines.append(f"{step}_ = {_call('adjust', [scores], options, step)}")
            scores = f"{step}_"
        lines.append(f"p = {_call('probabilities', [scores], options, 'sink')}")
        lines.append(f"a = {_call('attend', ['p', v], options, 'value_scale')}")
    names = [name if name in ("raw", "p", "a") else f"{name}_" for name in returned]
    return "\n".join([*lines, f"output {', '.join(names)}", ""])


def _call(function: str, arguments: Sequence[str], options: Mapping[str, str], *wanted: str) -> str:
    chosen = [f"{name} = {text}" for name, text in options.items() if text and (not wanted or name in wanted)]
    return f"{function}({', '.join([*arguments, *chosen])})"
