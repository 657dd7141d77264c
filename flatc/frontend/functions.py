"""The words of the language that can be called: functions, masks and biases, with what they take.

Each entry names a method of `flatc.builder.Graph` and the kind of each argument; `elaborate` reads the table,
and so do the messages:

    'heads' takes 2 arguments (x, heads), not 1
    'attention' has no option 'msk'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from flatc.dialects.frozen import frozen

Kind = Literal["tensor", "mask", "bias", "whole", "real", "flag", "type"]


@frozen
class Signature:
    """What a function takes: arguments by place (the last `optional` of them may be left out), options by name."""

    arguments: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    options: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    optional: int = 0

    @property
    def fewest(self) -> int:
        """How many arguments there must be."""
        return len(self.arguments) - self.optional

    def takes(self) -> str:
        """The arguments in words: `2 arguments (x, heads)`."""
        most = len(self.arguments)
        count = str(most) if not self.optional else f"{self.fewest} to {most}"
        names = f" ({', '.join(self.arguments)})" if most else ""
        return f"{count if most else 'no'} argument{'' if count == '1' else 's'}{names}"


_POINTWISE = Signature({"x": "tensor"})
_NORM = Signature({"x": "tensor", "weight": "tensor", "bias": "tensor"}, {"epsilon": "real"}, optional=2)
_ON_SCORES: Mapping[str, Kind] = {"mask": "mask", "bias": "bias", "softcap": "real", "key_scale": "tensor"}

FUNCTIONS: Mapping[str, Signature] = {
    "attention": Signature(
        {"q": "tensor", "k": "tensor", "v": "tensor"},
        {**_ON_SCORES, "scale": "real", "sink": "tensor", "value_scale": "tensor"},
    ),
    "logit": Signature({"q": "tensor", "k": "tensor"}, {"scale": "real"}),
    "adjust": Signature({"scores": "tensor"}, _ON_SCORES),
    "probabilities": Signature({"scores": "tensor"}, {"sink": "tensor"}),
    "attend": Signature({"p": "tensor", "v": "tensor"}, {"value_scale": "tensor"}),
    "heads": Signature({"x": "tensor", "heads": "whole"}),
    "merge": Signature({"x": "tensor"}),
    "features": Signature({"x": "tensor", "start": "whole", "stop": "whole"}),
    "concat": Signature({"x": "tensor", "y": "tensor"}),
    "paged": Signature({"pool": "tensor", "table": "tensor"}, {"keys": "whole"}),
    "append": Signature({"cache": "tensor", "new": "tensor"}),
    "rope": Signature({"x": "tensor"}, {"start": "whole", "base": "real", "dims": "whole", "interleaved": "flag"}),
    "layernorm": _NORM,
    "rmsnorm": _NORM,
    "gelu": _POINTWISE,
    "gelu_tanh": _POINTWISE,
    "silu": _POINTWISE,
    "relu": _POINTWISE,
    "sigmoid": _POINTWISE,
    "tanh": _POINTWISE,
    "cast": Signature({"x": "tensor", "type": "type"}),
}
"""Functions whose result is a tensor."""

MASKS: Mapping[str, Signature] = {
    "causal": Signature({}, {"offset": "whole"}),
    "window": Signature({"left": "whole", "right": "whole"}, {"offset": "whole"}, optional=1),
    "prefix": Signature({"length": "whole"}),
    "first": Signature({"count": "whole"}),
    "chunk": Signature({"size": "whole"}, {"offset": "whole"}),
    "valid": Signature({"pad": "tensor"}),
    "same": Signature({"doc": "tensor"}),
}
"""Words whose result is a mask; those without arguments need no brackets."""

BIASES: Mapping[str, Signature] = {
    "alibi": Signature({}, {"offset": "whole"}),
    "t5_relative": Signature(
        {"table": "tensor"},
        {"buckets": "whole", "max_distance": "whole", "bidirectional": "flag", "offset": "whole"},
    ),
}
"""Words whose result is a bias of the scores."""

_SCORES_BY_CONTENT = "flatc compiles attention that scores every visible pair of query and key"

NOT_ATTENTION: Mapping[str, str] = {
    **dict.fromkeys(("linear_attention", "linear_attn"), f"linear attention has no scores; {_SCORES_BY_CONTENT}"),
    **dict.fromkeys(
        ("topk", "top_k", "topk_attention", "index_topk", "sparse_attention"),
        f"top-k attention chooses keys by their scores; {_SCORES_BY_CONTENT}",
    ),
    **dict.fromkeys(
        ("disentangled", "disentangled_attention", "pos_att_type", "relative_key"),
        "disentangled attention (DeBERTa) multiplies queries and keys by positions too, which is more than one product",
    ),
    **dict.fromkeys(
        ("dropout", "dropout_p", "attention_dropout"), "dropout belongs to training, and flatc compiles inference"
    ),
}
"""Words of attentions that flatc refuses by name, with the reason; as functions, and as options of `attention`."""

CONSTANTS = ("true", "false")
NUMERIC = ("sqrt",)

RESERVED: Mapping[str, str] = {
    **dict.fromkeys(FUNCTIONS, "a function"),
    **dict.fromkeys(NUMERIC, "a function"),
    **dict.fromkeys(MASKS, "a mask"),
    **dict.fromkeys(BIASES, "a bias"),
    **dict.fromkeys(CONSTANTS, "a constant"),
}
"""Words that no dim or tensor may take, and what each is."""
