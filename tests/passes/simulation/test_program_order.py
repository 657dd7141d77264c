"""Program order, by tiny examples: which operation works in which trip, and in which sequence.

Read each example as: this text issues this sequence, where `q1` is operation %q in trip 1, and `k01` operation %k
in trip 1 of the loop inside trip 0. Every example is a legal schedule.
"""

from __future__ import annotations

from collections.abc import Iterator

from flatc.passes.simulation.program_order import Event, walk
from tests.support import kernels_of, schedule_of

FRAME = """
spatial.schedule @order inputs ["x"] (%x: !spatial.tensor<8xf32>) outputs [] {
  spatial.kernel "order" {
    %chip = spatial.buffer "chip" slots 1 : !spatial.buffer<8xf32>
    BODY
  }
}
"""


def op(name: str, tail: str = "") -> str:
    """An operation called `name`; which one it is does not matter to order."""
    return f"%{name} = spatial.load %x[0] into %chip extent [1] {tail}"


def events(body: str) -> Iterator[Event]:
    module = schedule_of(FRAME.replace("BODY", body))
    module.verify()
    return walk(kernels_of(module)[0])


def order(body: str) -> str:
    """The sequence in which the operations issue, as names and indices."""
    words: list[str] = []
    for event in events(body):
        words.append(f"{event.op.token.name_hint}{''.join(map(str, event.frame.indices.values()))}")
        event.complete(words[-1])
    return " ".join(words)


# --- Loops --------------------------------------------------------------------------------------------


def test_a_loop_runs_its_body_in_order():
    assert order(f"spatial.for %i = 1 to 4 {{ {op('a')} {op('b')} }}") == "a1 b1 a2 b2 a3 b3"


def test_bounds_depend_on_outer_trips():
    text = f"spatial.for %i = 0 to 3 {{ spatial.for %j = %i to min(2 * %i, 3) {{ {op('a')} }} }}"
    assert order(text) == "a11 a22"


def test_an_empty_loop_issues_nothing():
    assert order(f"spatial.for %i = 3 to 3 {{ {op('a')} }} {op('b')}") == "b"


# --- Stages -------------------------------------------------------------------------------------------


def test_an_operation_of_stage_s_works_on_the_instance_s_trips_back():
    """In every trip, the text is gone through once: %a works on this trip, %b on the one before."""
    assert order(f"spatial.for %i = 0 to 3 {{ {op('a')} {op('b', 'stage 1')} }}") == "a0 a1 b0 a2 b1 b2"


def test_text_decides_within_a_trip():
    """The later stage stands first: the old instance is worked on before the new one."""
    assert order(f"spatial.for %i = 0 to 3 {{ {op('b', 'stage 1')} {op('a')} }}") == "a0 b0 a1 b1 a2 b2"


def test_a_pipeline_deeper_than_its_loop():
    text = f"spatial.for %i = 0 to 2 {{ {op('a')} {op('b', 'stage 1')} {op('c', 'stage 3')} }}"
    assert order(text) == "a0 a1 b0 b1 c0 c1"


def test_a_plain_loop_runs_as_a_whole_at_its_own_stage():
    text = f"spatial.for %i = 0 to 2 {{ {op('a')} spatial.for %j = 0 to 2 stage 1 {{ {op('b')} }} }}"
    assert order(text) == "a0 a1 b00 b01 b10 b11"


def test_a_plain_loop_drains_before_what_follows():
    """Only a stream runs on: the inner pipeline is empty when %c works."""
    inner = f"spatial.for %j = 0 to 2 {{ {op('a')} {op('b', 'stage 1')} }}"
    assert order(f"spatial.for %i = 0 to 2 {{ {inner} {op('c')} }}") == "a00 a01 b00 b01 c0 a10 a11 b10 b11 c1"


# --- Streams ------------------------------------------------------------------------------------------


def stream(inner: str, *, before: str = "", after: str = "", upper: str = "2") -> str:
    """An outer loop of three trips around a streamed one."""
    return f"spatial.for %i = 0 to 3 {{ {before} spatial.for %j = 0 to {upper} stream {{ {inner} }} {after} }}"


def test_a_stream_runs_on_across_the_outer_loop():
    """The trips of all its runs are one sequence, so %b of the last inner trip works in the next outer trip."""
    assert order(stream(f"{op('a')} {op('b', 'stage 1')}")) == ("a00 a01 b00 a10 b01 a11 b10 a20 b11 a21 b20 b21")


def test_what_stands_before_belongs_to_the_first_trip_and_what_stands_after_to_the_last():
    text = stream(op("k"), before=op("q"), after=op("s"))
    assert order(text) == "q0 k00 k01 s0 q1 k10 k11 s1 q2 k20 k21 s2"


def test_stages_outside_of_the_stream_count_its_trips():
    """%s works on the outer trip that ended one *inner* trip ago: after %q and %k of the next one."""
    text = stream(op("k"), before=op("q"), after=op("s", "stage 1"))
    assert order(text) == "q0 k00 k01 q1 k10 s0 k11 q2 k20 s1 k21 s2"


def test_a_run_without_trips_is_one_trip_in_which_only_the_parent_works():
    """The inner loop runs 0, 1 and 2 times; even the empty run has its %q and %s."""
    text = stream(op("k"), before=op("q"), after=op("s"), upper="%i")
    assert order(text) == "q0 s0 q1 k10 s1 q2 k20 k21 s2"


def test_an_empty_run_keeps_the_pipeline_moving():
    text = stream(f"{op('k')} {op('m', 'stage 1')}", before=op("q"), after=op("s", "stage 1"), upper="1 - %i")
    assert order(text) == "q0 k00 q1 m00 s0 q2 s1 s2"


def test_a_plain_loop_beside_a_stream_belongs_to_its_first_trip():
    plain = f"spatial.for %l = 0 to 2 {{ {op('f')} }}"
    assert order(stream(op("k"), before=plain)) == "f00 f01 k00 k01 f10 f11 k10 k11 f20 f21 k20 k21"


def test_streams_nest():
    """Three loops, one sequence: %a of the outermost works in the very first trip of each of its runs."""
    inner = f"spatial.for %k = 0 to 2 stream {{ {op('c')} {op('d', 'stage 1')} }}"
    text = f"spatial.for %i = 0 to 2 {{ {op('a')} spatial.for %j = 0 to 2 stream {{ {op('b')} {inner} }} }}"
    assert order(text) == (
        "a0 b00 c000 c001 d000 b01 c010 d001 c011 d010 a1 b10 c100 d011 c101 d100 b11 c110 d101 c111 d110 d111"
    )


# --- Tokens -------------------------------------------------------------------------------------------


def waits(body: str) -> dict[str, list[str]]:
    """For each execution, the executions that it waits for."""
    found: dict[str, list[str]] = {}
    for event in events(body):
        name = f"{event.op.token.name_hint}{''.join(map(str, event.frame.indices.values()))}"
        found[name] = event.tokens()
        event.complete(name)
    return found


def test_a_token_means_the_same_instance():
    text = f"spatial.for %i = 0 to 2 {{ {op('a')} {op('b', 'after(%a) stage 1')} }}"
    assert waits(text) == {"a0": [], "a1": [], "b0": ["a0"], "b1": ["a1"]}


def test_a_carried_token_means_the_instance_before():
    """The first trip takes what the loop was given: nothing to wait for, from `spatial.start`."""
    body = f"{op('a', 'after(%c)')} spatial.yield %a"
    text = f"%t = spatial.start\n %u = spatial.for %i = 0 to 3 carry(%c = %t) {{ {body} }} {op('z', 'after(%u)')}"
    assert waits(text) == {"a0": [], "a1": ["a0"], "a2": ["a1"], "z": ["a2"]}


def test_a_loop_without_trips_passes_on_what_it_was_given():
    loop = f"spatial.for %i = 0 to 0 carry(%c = %t) {{ {op('a', 'after(%c)')} spatial.yield %a }}"
    assert waits(f"{op('t')} %u = {loop} {op('z', 'after(%u)')}") == {"t": [], "z": ["t"]}


def test_carried_tokens_start_anew_in_every_run_of_a_stream():
    inner = f"spatial.for %j = 0 to 2 stream carry(%c = %q) {{ {op('k', 'after(%c)')} spatial.yield %k }}"
    found = waits(f"spatial.for %i = 0 to 2 {{ {op('q')} %u = {inner} {op('s', 'after(%u)')} }}")
    assert found["k00"] == ["q0"]
    assert found["k01"] == ["k00"]
    assert found["k10"] == ["q1"]
    assert found["s0"] == ["k01"]


# --- Instances and expressions ------------------------------------------------------------------------


def test_buffers_have_an_instance_for_each_trip_of_their_own_loop():
    inner = '%c = spatial.buffer "c" slots 2 : !spatial.buffer<8xf32> %k = spatial.load %x[0] into %c extent [1]'
    text = f"spatial.for %i = 0 to 2 {{ spatial.for %j = 0 to 2 stream {{ {inner} {op('b')} }} }}"
    numbers: list[int] = []
    for event in events(text):
        event.complete(None)
        numbers.append(event.instance(event.op.writes[0])[1])
    assert numbers == [0, 0, 1, 0, 2, 0, 3, 0]  # c anew in every trip, chip for the whole kernel


def test_expressions_are_those_of_the_instance_an_operation_works_on():
    load = "%a = spatial.load %x[%i * 3] into %chip[%i] extent [min(3, 8 - %i * 3)] when %i stage 2"
    found: list[tuple[bool, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
    for event in events(f"spatial.for %i = 0 to 3 {{ {load} }}"):
        event.complete(None)
        found.append((event.active(), event.tensor_offsets(), event.window(0), event.extents()))
    assert found == [(False, (0,), (0,), (3,)), (True, (3,), (1,), (3,)), (True, (6,), (2,), (2,))]
