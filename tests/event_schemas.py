"""Holding events that were really sent against the schema that the repository keeps of them."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from ledger.schema import FOLDER


def validate(event: dict[str, Any], schema: str) -> None:
    """ValidationError: the event is not as the file under ledger/schemas says."""
    read = json.loads((FOLDER / schema).read_text())
    Draft202012Validator.check_schema(read)
    Draft202012Validator(read, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(event)
