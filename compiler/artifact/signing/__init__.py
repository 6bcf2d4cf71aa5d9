"""Signed artifacts: where a build is from, what it is made of, and the signature over every file of its folder.

bom.cdx.json               what it is made of: CycloneDX 1.6
provenance.intoto.jsonl    who built it of what: in-toto statements (SLSA provenance v1), a DSSE envelope per line
signature.sigstore.json    every file and its digest: an OMS bundle, as `model_signing verify key` reads it
"""

from __future__ import annotations

from compiler.artifact.signing.check import Signed, check_signatures
from compiler.artifact.signing.sign import confirm_rebuild, sign_artifact

__all__ = ["Signed", "check_signatures", "confirm_rebuild", "sign_artifact"]
