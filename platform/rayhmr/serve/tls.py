"""Encryption of the service's own connections."""

from __future__ import annotations

import ssl

from hmr.errors import ConfigError
from rayhmr.config import ServeJob


def checked_tls(job: ServeJob) -> tuple[str, str] | None:
    """Paths of the certificate and its key, none where there are none; ConfigError when they cannot
    be used."""
    if job.tls_cert_file is None or job.tls_key_file is None:
        return None
    pair = job.tls_cert_file, job.tls_key_file
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*pair, password=_no_password)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigError(
            f"tls_cert_file={pair[0]} tls_key_file={pair[1]}: cannot be used ({error}); give PEM "
            "files, the certificate's chain and the key that belongs to it, without a password"
        ) from error
    return pair


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ValueError("the key has a password")


def client_context(certificate: str) -> ssl.SSLContext:
    """Of a client on this machine that trusts this certificate alone, under whatever name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is enough
    context.load_verify_locations(certificate)
    return context
