"""Certificates made with openssl: an authority, servers and clients."""

import atexit
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import NamedTuple


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: pathlib.Path
    key: pathlib.Path

    def keys(self, client_ca=None):
        """The keys of a [[listen]] or of [admin] that name it."""
        return {"certificate_file": str(self.certificate), "key_file": str(self.key),
                **({"client_ca_file": str(client_ca)} if client_ca else {})}


def run(*argv):
    """Runs openssl."""
    done = subprocess.run(["openssl", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


class Authority:
    """A certificate authority in a directory of its own, as long as the process lives."""

    def __init__(self, name="pgweir test authority"):
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-ca-"))
        atexit.register(shutil.rmtree, self.base, ignore_errors=True)
        self.base.chmod(0o755)
        self.file = self.base / "ca.pem"
        self.key = self.base / "ca.key"
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", f"/CN={name}",
            "-keyout", self.key, "-out", self.file, "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.file.chmod(0o644)

    def issue(self, name, san=None, days=30, rsa=False, common_name=None, version_1=False):
        """A certificate of this authority; without `san` it has a common name only, of version 1 no extension at all."""
        pair = Pair(self.base / f"{name}.pem", self.base / f"{name}.key")
        request, extensions = self.base / f"{name}.csr", self.base / f"{name}.ext"
        key = ["rsa:2048"] if rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        run("req", "-newkey", *key, "-nodes", "-subj", f"/CN={common_name or name}", "-keyout", pair.key, "-out", request)
        extensions.write_text("basicConstraints=CA:FALSE\n" + (f"subjectAltName={san}\n" if san else ""))
        run("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.key, "-CAcreateserial", "-days", days,
            *([] if version_1 else ["-extfile", extensions]), "-out", pair.certificate)
        pair.certificate.chmod(0o644)
        pair.key.chmod(0o600)
        return pair


def for_postgres(cluster, pair):
    """Settings of a cluster that shows this certificate; copies its files to where PostgreSQL may read them."""
    from .cluster import server_user
    user = server_user()
    out = {"ssl": "on"}
    for setting, source, name in [("ssl_cert_file", pair.certificate, "server.pem"), ("ssl_key_file", pair.key, "server.key")]:
        target = cluster.base / name
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)
        if user is not None:
            os.chown(target, user.pw_uid, user.pw_gid)
        out[setting] = str(target)
    return out


@functools.cache
def suite():
    """The certificate of a suite that runs over TLS (PGWEIR_TLS)."""
    return Authority().issue("suite", san="DNS:localhost,IP:127.0.0.1")
