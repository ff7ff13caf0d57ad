# SPDX-License-Identifier: Apache-2.0
"""`draftflow bench python` gives its rows; what they say is for people to read, on a quiet machine."""

import json

from draftflow import _bench


def test_each_group_gives_its_rows_and_leaves_nothing(tmp_path, capsys):
    assert _bench.main(["--quick", "--json", "--dir", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    expected = [f"python_{call}_{count}_us" for count in (1, 4) for call in ("put", "get", "release")]
    expected += ["python_get_zero_copy_64mib_us", "python_put_4kib", "python_get_4kib"]
    expected += ["python_put_4kib_resident", "python_put_64mib", "python_get_64mib", "python_batches"]
    expected += [f"compat_{call}_us" for call in ("put", "get", "release")]
    assert list(rows) == expected
    for row in rows.values():
        assert row["value"] > 0 and row["limit"] > 0
        assert row["ratio"] == row["value"] / row["limit"]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_group_is_named(tmp_path, capsys):
    try:
        _bench.main(["--rows", "nothing", "--dir", str(tmp_path)])
    except SystemExit as end:
        assert end.code == 2
    assert "'nothing' is no group of rows; there are overhead, zero_copy" in capsys.readouterr().err
