"""A signer of nobody, whose signatures C2PA's library accepts and nobody trusts."""

import datetime

import pytest


@pytest.fixture(scope="session")
def signer(tmp_path_factory):
    """The PEM files of a self-made certificate with its issuer, and of its private key: (certificate, key)."""
    pytest.importorskip("c2pa")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("issuer", "signer")}

    def certificate(name, number, authority, *more):
        whole = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nobody")]
        names = {each: x509.Name([*whole, x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in keys}
        public = keys[name].public_key()
        built = x509.CertificateBuilder(
            subject_name=names[name], issuer_name=names["issuer"], public_key=public, serial_number=number,
            not_valid_before=now - datetime.timedelta(days=1), not_valid_after=now + datetime.timedelta(days=1),
        )  # fmt: skip
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        built = built.add_extension(x509.BasicConstraints(authority, None), True)
        built = built.add_extension(x509.KeyUsage(**usage), True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        for extension in more:
            built = built.add_extension(extension, False)
        return built.sign(keys["issuer"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    of_issuer = certificate("issuer", 1, True)
    of_signer = certificate(
        "signer", 2, False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["issuer"].public_key()),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("signer")
    (folder / "certificate.pem").write_bytes(of_signer + of_issuer)
    (folder / "key.pem").write_bytes(
        keys["signer"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(folder / "certificate.pem"), str(folder / "key.pem")
