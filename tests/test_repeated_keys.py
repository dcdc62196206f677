"""JSON in which an object has one key twice, of which a reader would keep the last."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from forge_sweep.bundle.files import read_json
from forge_sweep.errors import BundleError
from forge_sweep.preprocessing import RowTransform
from tests.serving import fitted, need_the_extra

ROW = {"age": 40.0, "orders": 3, "member": True, "city": "Bern"}


@pytest.fixture(scope="module")
def transform() -> RowTransform:
    return RowTransform(fitted("constant").preprocessor)


@pytest.mark.parametrize(
    "body",
    [
        '{"age": 1, "orders": 3, "member": true, "city": "Bern", "age": 2}',
        '{"age": 1, "orders": 3, "member": true, "city": "Bern", "age": 1}',
        '{"age": 1, "orders": 3, "member": true, "city": "a:b", "\\u0061ge": 2}',
        '[{"age": 1, "orders": 3, "member": true, "city": "Bern"},'
        ' {"age": 1, "age" : 2, "orders": 3, "member": true, "city": ":"}]',
        '{"age": 1, "orders": 3, "member": true, "city": {"a": 1, "a": 2}}',
        '{"age": 1, "orders": 3, "member": true, "city": [{"b": [{"a": 1, "a": 2}]}]}',
    ],
)
def test_a_repeated_key_is_refused_at_any_depth(body: str, transform: RowTransform) -> None:
    need_the_extra()
    from forge_sweep.serving.bodies import Refused, read

    with pytest.raises(Refused, match="2 times; give each once") as refused:
        read("application/json", body.encode(), transform, 100)
    assert (refused.value.status, refused.value.code) == (400, "repeated-key")


@pytest.mark.parametrize("city", ["Bern", "a:b:c", '"age": 1', "{}"])
def test_colons_in_values_are_no_keys(city: str, transform: RowTransform) -> None:
    need_the_extra()
    from forge_sweep.serving.bodies import read

    for body in ({**ROW, "city": city}, [{**ROW, "city": city}, ROW]):
        assert len(read("application/json", json.dumps(body).encode(), transform, 100).raw) in (1, 2)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "nan"])
def test_numbers_that_json_does_not_have_are_refused(word: str, transform: RowTransform) -> None:
    need_the_extra()
    from forge_sweep.serving.bodies import Refused, read

    with pytest.raises(Refused, match="not JSON"):
        read("application/json", json.dumps(ROW).replace("40.0", word).encode(), transform, 100)


def test_a_million_keys_with_one_of_them_twice_are_refused_in_one_pass(transform: RowTransform) -> None:
    need_the_extra()
    from forge_sweep.serving.bodies import Refused, read

    body = "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"199999":1}'
    begun = time.process_time()
    with pytest.raises(Refused, match="'199999' 2 times"):
        read("application/json", body.encode(), transform, 100)
    assert time.process_time() - begun < 30  # 200,000 squared would take hours


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 2}}]', '{"a": NaN}', "[-Infinity]"])
def test_files_of_a_bundle_say_everything_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BundleError, match="is not JSON"):
        read_json(tmp_path / "x.json")
