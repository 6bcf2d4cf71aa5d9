import pytest

from compiler.errors import InternalError
from compiler.store.digests import code_digest


@pytest.mark.parametrize("module", ["compiler.no_such_module", "no_such_package.module", "sys"])
def test_a_key_never_goes_on_without_the_code_it_names(module):
    with pytest.raises(InternalError, match=module):
        code_digest(module)


def test_a_package_has_the_digest_of_all_its_sources():
    assert code_digest("compiler.passes") != code_digest("compiler.passes.probe")
    assert len(code_digest("compiler")) == 64
