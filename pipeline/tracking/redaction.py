"""What must never leave the machine: secrets in configurations, addresses and text.

A key that names a secret is dropped with its value; inside any other value, credentials in a URI
(`scheme://user:password@host`, `?X-Amz-Signature=...`), AWS key ids and the values of secret
environment variables are replaced by `***`.
"""

import dataclasses
import enum
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.tracking.limits import MAX_PARAM_CHARS

MASK = "***"

_SECRET_WORDS = (
    r"secret|passwo?r?d|passwd|passphrase|token(?!i[sz])|credential"
    r"|access[_\-.]?key|api[_\-.]?key|private[_\-.]?key"
)
_SECRET_KEY = re.compile(_SECRET_WORDS, re.IGNORECASE)
# A variable that ends so holds the secret itself; AWS_WEB_IDENTITY_TOKEN_FILE holds a path.
_SECRET_VARIABLE = re.compile(rf"(?:{_SECRET_WORDS})(?:_id|s)?$", re.IGNORECASE)
# Both in time that grows with the text's length alone, also for one that was made to be slow.
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,30}://)[^/\s\"']*@")
_QUERY = re.compile(
    rf"([?&;][^=&?;\s]*(?:{_SECRET_WORDS}|signature)[^=&?;\s]*=)[^&\s\"']+", re.IGNORECASE
)
_AWS_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")
_MIN_ENV_SECRET_CHARS = 8  # shorter values would mask ordinary words


def is_secret_key(key: str) -> bool:
    """Returns whether a configuration key, tag or environment variable names a secret.

    `tokenizer` and its relatives are no secrets, although `token` is.
    """
    return _SECRET_KEY.search(key) is not None


def redact_text(text: str) -> str:
    """Masks the credentials inside a text; the rest stays as it is."""
    text = _USERINFO.sub(rf"\g<1>{MASK}@", text)
    text = _QUERY.sub(rf"\g<1>{MASK}", text)
    text = _AWS_KEY_ID.sub(MASK, text)
    secrets = [value for key, value in os.environ.items() if _SECRET_VARIABLE.search(key)]
    for secret in sorted(secrets, key=len, reverse=True):  # One may be a part of another.
        if len(secret) >= _MIN_ENV_SECRET_CHARS:
            text = text.replace(secret, MASK)
    return text


def reason_of(error: BaseException) -> str:
    """The first line of an error, without credentials."""
    return redact_text(f"{type(error).__name__}: {error}".splitlines()[0])[:200]


def redact_tree(tree: Any) -> Any:
    """Copies nested dicts, lists and dataclasses without secret keys, with masked strings."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, Mapping):
        return {str(k): redact_tree(v) for k, v in tree.items() if not is_secret_key(str(k))}
    if isinstance(tree, list | tuple | set | frozenset):
        return [redact_tree(item) for item in tree]
    if isinstance(tree, enum.Enum):
        return redact_tree(tree.value)
    if tree is None or isinstance(tree, bool | int | float):
        return tree
    return redact_text(str(tree))


def redact_values(values: Mapping[str, Any], max_chars: int) -> dict[str, str]:
    """Turns parameters or tags into what may be logged.

    Args:
        values: Any values by key; secret keys are left out.
        max_chars: Longer values are cut and end in "...".
    """
    texts = {k: redact_text(str(v)) for k, v in values.items() if not is_secret_key(k)}
    return {k: v if len(v) <= max_chars else v[: max_chars - 3] + "..." for k, v in texts.items()}


def flatten_config(config: Any) -> dict[str, str]:
    """Flattens a configuration into MLflow parameters.

    Args:
        config: A dataclass or mapping; nested dataclasses, mappings and lists of these become
            dotted keys (`data.weights.coco`, `stages.0.lr`); a list of plain values is one value.

    Returns:
        Values as text by dotted key, without secrets, cut to MLflow's limit.
    """
    return redact_values(dict(leaves(redact_tree(config))), MAX_PARAM_CHARS)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration tree by dotted key; see `flatten_config`."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = {str(index): item for index, item in enumerate(tree)}
    if isinstance(tree, dict) and (tree or not prefix):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree
