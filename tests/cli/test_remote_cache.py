"""What one machine built is everybody's: a build with an empty store and a shared cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Place

pytest.importorskip("cryptography", reason="needs the extra trust")


@pytest.fixture(scope="module")
def lab(shared: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose folder `share` is a shared cache with all that the shared build made, signed by lab.pem."""
    place = Place(tmp_path_factory.mktemp("lab") / "place", shared.env)
    shutil.copytree(shared.root, place.root)
    (place.root / "share").mkdir()
    for name in ("lab.pem", "other.pem"):
        assert place.run("keygen", place.root / name).code == 0
    pushed = place.run("cache", "push", f"file://{place.root}/share", "--key", "lab.pem", "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.json["entries"] == pushed.json["pushed"] > 4
    return place


def empty_build(lab: Place, root: Path, *args: str) -> tuple[Place, int, str]:
    """A build of the same fleet on a machine with an empty store."""
    shutil.copytree(lab.root, root, ignore=shutil.ignore_patterns("cache", "dist", "share"))
    place = Place(root, {**lab.env, "FLEETC_CACHE": str(root / "cache")})
    outcome = place.build("--remote-cache", f"file://{lab.root}/share", *args)
    return place, outcome.code, outcome.err


def test_a_build_with_an_empty_store_fetches_every_stage(lab: Place, tmp_path: Path) -> None:
    place, code, err = empty_build(lab, tmp_path / "new", "--trusted-key", str(lab.root / "lab.pub"))
    assert code == 0, err
    for device in ("one", "two"):
        stages = json.loads((place.dist / device / "measurements.json").read_text())["stages"]
        assert stages and all(stage["from_store"] for stage in stages)
    assert place.digests() == lab.digests()


def test_a_build_that_trusts_others_makes_all_of_it_and_says_so(lab: Place, tmp_path: Path) -> None:
    place, code, err = empty_build(
        lab, tmp_path / "new", "--trusted-key", str(lab.root / "other.pub"), "--device", "one"
    )
    assert code == 0, err
    assert err.count("no trusted key has signed") == 1
    stages = json.loads((place.dist / "one" / "measurements.json").read_text())["stages"]
    assert not any(stage["from_store"] for stage in stages if stage["stage"] == "compile")


def test_a_shared_cache_without_a_trusted_key_is_usage(lab: Place, tmp_path: Path) -> None:
    _, code, err = empty_build(lab, tmp_path / "new")
    assert code == 2
    assert "no key is trusted" in err and "--trusted-key" in err


def test_what_is_there_already_is_not_pushed_again(lab: Place) -> None:
    again = lab.run("cache", "push", f"file://{lab.root}/share", "--key", "lab.pem", "--json")
    assert again.code == 0, again.err
    assert (again.json["pushed"], again.json["bytes"]) == (0, 0)


def test_a_push_that_fails_is_an_error(lab: Place) -> None:
    outcome = lab.run("cache", "push", f"file://{lab.root}/nowhere", "--key", "lab.pem")
    assert outcome.code == 4
    assert "the shared cache cannot be used" in outcome.err
