"""`flatc validate`: tables on standard output, reasons for every miss, one message for a bad folder."""

import json
from pathlib import Path

import pytest

from flatc.cli import main


@pytest.mark.slow
def test_the_shipped_figures_have_no_miss_without_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert {"flat-ideal"} <= {table["name"] for table in tables}


def test_an_empty_folder_is_refused_or_leaves_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["validate", "--reference", str(tmp_path)])
    out, err = capsys.readouterr()
    assert "within" not in out
    assert "Traceback" not in err


def test_a_folder_that_is_not_there_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--reference", "no/such/folder"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: 'no/such/folder' is no folder")
