"""Files for HTTPS; test_front.py and test_exposure.py answer by it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hmr.errors import ConfigError
from rayhmr.config import ServeJob
from rayhmr.serve.tls import checked_tls


def test_files_that_cannot_be_used_are_refused_before_anything_starts(tmp_path, make_certificate):
    pair, other = make_certificate(), make_certificate("other")
    locked = make_certificate("locked", b"secret")
    assert checked_tls(ServeJob()) is None
    assert checked_tls(ServeJob(tls_cert_file=pair[0], tls_key_file=pair[1])) == pair
    for certificate, key in (
        (pair[0], str(tmp_path / "absent")), (pair[0], other[1]), (pair[1], pair[0]), locked,
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="give PEM files") as caught:
            checked_tls(ServeJob(tls_cert_file=certificate, tls_key_file=key))
        assert f"tls_cert_file={certificate} tls_key_file={key}" in str(caught.value)
    with pytest.raises(ValidationError, match="set both or none"):
        ServeJob(tls_cert_file=pair[0])
