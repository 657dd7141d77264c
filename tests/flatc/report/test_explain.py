"""`flatc explain`: one headline, causes that add up on paper too, and the same in JSON."""

import json

import pytest

from flatc.cli import main

ARGUMENTS = ["explain", "examples/bert_base.flat", "--accelerator", "edge", "--bind", "B=1,S=130"]


def test_the_text_names_bound_gap_and_causes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert text.startswith("bert_base on edge: ")
    assert "no schedule takes less than" in text.splitlines()[1]
    assert "100.0 %        together" in text
    assert "waits for" in text


def test_the_json_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--strategy", "unfused", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    gap = found["latency_cycles"] - found["bounds"][f"{found['resource']}_cycles"]
    assert gap == pytest.approx(found["gap_cycles"])
    assert sum(cause["cycles"] for cause in found["causes"]) == pytest.approx(gap)
    for kernel in found["kernels"]:
        for use in kernel["resources"].values():
            spent = use["busy"] + sum(stall["cycles"] for stall in use["stalls"]) + use["after"]
            assert spent == pytest.approx(kernel["latency_cycles"])


def test_the_same_question_has_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    main(ARGUMENTS)
    first = capsys.readouterr().out
    main(ARGUMENTS)
    assert capsys.readouterr().out == first
