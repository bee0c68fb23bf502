"""C2PA content credentials: a signed manifest inside the file, which says that a model made it (c2pa.org, 2.x).

The extra `c2pa` brings the library. A signature holds a random name, so that signed files of two equal runs differ in
bytes, never in pixels.
"""

import importlib.util
import io
import json
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from dermjax.errors import UserError

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"  # IPTC's word for synthetic
PNG, CHUNK = b"\x89PNG\r\n\x1a\n", b"caBX"  # how a file begins, and the chunk of a manifest
GENERATION = "org.dermjax.generation"  # our assertion
PLAIN = {"builder": {"thumbnail": {"enabled": False}}}  # a thumbnail would be larger than the image


def signer(certificate: str, key: str) -> Callable[[bytes, dict], bytes]:
    """Returns sign(file, generation) -> the PNG file with its manifest; both names "" is no manifest.

    certificate is a PEM file with the signer's certificate first and its issuers after it, key the PEM file of its
    private key without a password: EC P-256, Ed25519 or RSA.

    Raises:
      UserError: a file is missing or not of that kind, or the library is not installed.
    """
    if not certificate and not key:
        return lambda file, generation: file
    chain, private = _read(certificate, "certificate"), _read(key, "key")
    c2pa, algorithm = _library(), _algorithm(private, key)

    def sign(file: bytes, generation: dict) -> bytes:
        signed = io.BytesIO()
        by = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, private, None))
        with by, c2pa.Context.from_dict(PLAIN) as context, c2pa.Builder(_claim(generation), context) as builder:
            builder.sign(by, "image/png", io.BytesIO(file), signed)
        return signed.getvalue()

    smallest = io.BytesIO()
    Image.new("RGB", (8, 8)).save(smallest, "PNG")
    try:
        sign(smallest.getvalue(), {})
    except c2pa.C2paError as error:
        raise UserError(f"config.credentials.certificate {certificate}: cannot sign with it ({error})") from error
    return sign


def is_signed(file: bytes) -> bool:
    """Returns whether a PNG file has a manifest, whatever it says; without the library."""
    place = len(PNG)
    while file.startswith(PNG) and place + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        if kind == CHUNK:
            return True
        place += 12 + length  # its length, kind and checksum
    return False


def installed() -> bool:
    """Returns whether the library is there."""
    return importlib.util.find_spec("c2pa") is not None


def read(path: Path) -> dict[str, Any] | None:
    """Returns {"state", "issuer", "faults", "generation"} of a file's manifest, None for a file without one.

    Raises:
      UserError: the library is not installed.
    """
    c2pa = _library()
    try:
        reader = c2pa.Reader.try_create(str(path))
    except c2pa.C2paError:  # not a kind of file that has one
        return None
    if reader is None:
        return None
    with reader:
        active, state = reader.get_active_manifest() or {}, reader.get_validation_state()
        report = json.loads(reader.json())
    assertions = {each["label"]: each["data"] for each in active.get("assertions", [])}
    return {
        "state": state,
        "issuer": active.get("signature_info", {}).get("issuer", "unknown"),
        "faults": [each["explanation"] for each in report.get("validation_status", [])],
        "generation": json.loads(assertions[GENERATION]["json"]) if GENERATION in assertions else {},
    }


def _claim(generation: dict) -> str:
    """Returns what a manifest claims: created by a model, and how."""
    agent = {"name": "dermjax", "version": metadata.version("dermjax")}
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE, "softwareAgent": agent}
    return json.dumps({
        "claim_generator_info": [agent],
        "format": "image/png",
        "title": "synthetic skin lesion",
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [created]}},
            {"label": GENERATION, "data": {"json": json.dumps(generation)}},  # as text: C2PA's JSON loses lists
        ],
    })  # fmt: skip


def _library() -> ModuleType:
    try:
        import c2pa
    except ImportError as error:
        raise UserError("content credentials need c2pa-python; pip install 'dermjax[c2pa]'") from error
    return c2pa


def _algorithm(private: bytes, name: str) -> str:
    """Returns C2PA's name of the algorithm that a private key signs with."""
    from cryptography.hazmat.primitives import serialization  # which c2pa-python depends on

    try:
        kind = type(serialization.load_pem_private_key(private, None)).__name__
    except (ValueError, TypeError) as error:
        raise UserError(f"config.credentials.key {name}: not a PEM private key without a password") from error
    names = {"ECPrivateKey": "es256", "Ed25519PrivateKey": "ed25519", "RSAPrivateKey": "ps256"}
    if kind not in names:
        raise UserError(f"config.credentials.key {name}: a {kind}; give an EC P-256, Ed25519 or RSA key")
    return names[kind]


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        missing = "is missing; give certificate and key, or none"
        fault = f"{path}: cannot be read ({error.strerror})" if path else missing
        raise UserError(f"config.credentials.{key} {fault}") from error
