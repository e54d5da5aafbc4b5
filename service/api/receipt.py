"""Receipts: what was asked of which checkpoint, and the hash of what came, so that anybody can check a text on any machine.

The arithmetic says whether a text is the checkpoint's answer to a request; a signature, where the service has a key, says who said so.
What is signed is the receipt without its signature, as canonical JSON (RFC 8785). Pure functions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from model.checkpoint.signature import SignatureError, parse_public_key, public_key_text
from model.params import SamplingParams
from model.version import ARITHMETIC_VERSION
from service.api.schemas import GenerateBody
from service.engine.interface import Completion, ServedCheckpoint

REQUEST_FIELDS = (
    *("prompt", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    *("logit_bias", "stop", "echo", "on_unknown", "generated"),
)
"""What a text depends on, beside ``max_new_tokens``, ``seed`` and ``context``, which are written as they were resolved."""


@dataclass(frozen=True, slots=True)
class ReceiptPlan:
    """What a text's receipt will say, but for what only the text can tell."""

    request: Mapping[str, Any]
    key: Ed25519PrivateKey | None
    """Signs it, if the service has one."""

    def receipt(self, checkpoint: ServedCheckpoint, text: str, completion: Completion) -> dict[str, Any] | None:
        """The receipt of a text; None for one that ran out of time, which is no function of its request."""
        if completion.finish_reason == "timeout":
            return None
        receipt: dict[str, Any] = {
            "request": self.request,
            "checkpoint": checkpoint.id,
            "fingerprint": checkpoint.fingerprint,
            "arithmetic": ARITHMETIC_VERSION,
            "text_sha256": sha256_text(text),
            "tokens": completion.completion_tokens,
        }
        return receipt if self.key is None else {**receipt, "signature": sign(receipt, self.key)}


def plan_receipt(body: GenerateBody, params: SamplingParams, key: Ed25519PrivateKey | None) -> ReceiptPlan | None:
    """A receipt, if the body asks for one: every field that the text depends on, with the values that were settled on."""
    if not body.receipt:
        return None
    request = {name: getattr(body, name) for name in REQUEST_FIELDS}
    request |= {"max_new_tokens": params.max_new_tokens, "seed": params.seed, "context": "sliding" if params.stride == 1 else "anchored"}
    return ReceiptPlan(request, key)


def sha256_text(text: str) -> str:
    """The hash that lets a client check a text put together from events."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sign(receipt: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, str]:
    """An Ed25519 signature and the public key that checks it, both in base64."""
    return {"key": public_key_text(key), "value": base64.b64encode(key.sign(canonical(receipt))).decode()}


def canonical(receipt: Mapping[str, Any]) -> bytes:
    """What is signed."""
    return rfc8785.dumps({name: value for name, value in receipt.items() if name != "signature"})


def signature_error(receipt: Mapping[str, Any]) -> str:
    """What is wrong with a receipt's signature; nothing if it has none or a good one."""
    if (signature := receipt.get("signature")) is None:
        return ""
    try:
        value = base64.b64decode(signature["value"], validate=True)
        parse_public_key(signature["key"]).verify(value, canonical(receipt))
    except (SignatureError, KeyError, TypeError, ValueError, binascii.Error, rfc8785.CanonicalizationError):
        return "the signature is none"
    except InvalidSignature:
        return "the signature was not made by its key over this receipt"
    return ""


def first_difference(expected: str, found: str) -> int | None:
    """Where two texts differ first, in characters; None if they do not."""
    if expected == found:
        return None
    shorter = min(len(expected), len(found))
    return next((at for at in range(shorter) if expected[at] != found[at]), shorter)
