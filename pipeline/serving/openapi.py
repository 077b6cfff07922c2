"""The description of the service: OpenAPI as JSON, and a plain page that needs no script."""

from html import escape
from typing import Any

from pipeline.inference.served_limits import Limits

_IMAGE = "A JPEG, PNG, WebP, TIFF, BMP, PPM or GIF"
_VIEW = {
    "type": "string",
    "enum": ["single", "published", "whole"],
    "default": "single",
    "description": "How the network sees the image: windows at one scale; six scales and mirror "
    "images, some twenty times as dear; or one pass over the whole image.",
}


def described(limits: Limits) -> dict[str, Any]:
    """The OpenAPI document."""
    errors = {
        "400": "The message says which parameter is wrong, and what is allowed.",
        "401": "The API key is missing or wrong.",
        "403": "Without a key: the call comes from another machine or page.",
        "413": "The image (MiB or megapixels), or the answer that it asks for, is too large.",
        "415": "Neither a form nor JSON.",
        "429": "Too many calls wait: try again after `Retry-After` seconds.",
        "500": "The call failed; the service's log says why.",
        "503": "The call took too long, or no replica answers: try again after `Retry-After` "
        "seconds.",
    }
    refused = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, text in errors.items()
    }
    barred = {status: refused[status] for status in ("401", "403")}
    away = {**barred, "503": refused["503"]}
    segment, embed = _segment_fields(limits), _embed_fields(limits)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LSeg",
            "version": "1",
            "description": "Segments an image with any words. Every answer to a call has the "
            "header LSeg-Model, the name of the model that made it.",
        },
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": {
            "/v1/segment": {
                "post": _operation(
                    "Segments an image",
                    segment,
                    {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Segments"}},
                        "image/png": {"schema": {"type": "string", "format": "binary"}},
                        "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
                    },
                    refused,
                )
            },
            "/v1/embed": {
                "post": _operation(
                    "Embeds the pixels of an image: (C, h, w) float16 unit vectors as .npy",
                    embed,
                    {"application/x-npy": {"schema": {"type": "string", "format": "binary"}}},
                    refused,
                )
            },
            "/v1/labels": {"get": _get("The model, its labels, and the limits", away)},
            "/healthz": {"get": _get("Whether the service answers, and with which model", away)},
            "/metrics": {"get": _get("Counts of this process, in Prometheus's format", barred)},
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {"Segments": _segments(), "Error": _error()},
        },
    }


def documentation(limits: Limits) -> str:
    """The description as a page."""
    document, parts = described(limits), []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {path}</code></h2>")
            parts.append(f"<p>{escape(operation['summary'])}.</p>")
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]["schema"]
                parts.append(_table(content["properties"], "parameter"))
                statuses = {s: {"description": r["description"]} for s, r in
                            operation["responses"].items()}  # fmt: skip
                parts.append(_table(statuses, "status"))
    answer = _table(document["components"]["schemas"]["Segments"]["properties"], "name")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LSeg: the service</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page/page.css">
</head>
<body class="docs">
<main>
<h1>The service</h1>
<p>{escape(document["info"]["description"])} <a href="/openapi.json">openapi.json</a> says the same
for programs. <a href="/">The page</a> is for people.</p>
<pre>curl -F image=@photo.jpg -F "labels=dog, grass" -F other=other ADDRESS/v1/segment
curl -F image=@photo.jpg -F "labels=dog, grass" -F answer=png ADDRESS/v1/segment -o mask.png</pre>
<p>Where the service asks for a key: <code>-H "Authorization: Bearer $LSEG_API_KEY"</code>.</p>
{"".join(parts)}
<h2>The answer of <code>/v1/segment</code> in JSON</h2>
{answer}
</main>
</body>
</html>
"""


def _segment_fields(limits: Limits) -> dict[str, Any]:
    return {
        **_embed_fields(limits),
        "labels": {
            "type": "array",
            "items": {"type": "string", "maxLength": limits.max_label_chars},
            "maxItems": limits.max_labels,
            "description": "Any texts; left out: those of the training. A form may hold several "
            "fields, or one with commas.",
        },
        "other": {
            "type": "string",
            "default": "none",
            "description": "What becomes of pixels of none of the labels: `none`, each gets its "
            "best label; a probability (0.4) that the best label must reach; or texts with commas "
            "that compete with the labels.",
        },
        "answer": {
            "type": "string",
            "enum": ["json", "png", "probabilities"],
            "default": "json",
            "description": "JSON with run lengths; a PNG whose values are positions in the labels, "
            "the largest one for none; or .npy of (K, H, W) float16, one more row for the texts "
            "of `other`.",
        },
        "mask": {
            "type": "boolean",
            "default": False,
            "description": "Whether the JSON holds the PNG too, in base64.",
        },
    }


def _embed_fields(limits: Limits) -> dict[str, Any]:
    return {
        "image": {
            "type": "string",
            "contentEncoding": "base64",
            "description": f"{_IMAGE} of at most {limits.max_image_mib:g} MiB and "
            f"{limits.max_image_mpx:g} megapixels; a file of a form, or base64 in JSON.",
        },
        "view": _VIEW,
        "base_px": {
            "type": "integer",
            "default": 0,
            "maximum": limits.max_base_px,
            "description": "The long side at which the network sees the image; 0: as in training.",
        },
    }


def _operation(
    summary: str, fields: dict[str, Any], content: dict[str, Any], refused: dict[str, Any]
) -> dict[str, Any]:
    in_json = {"type": "object", "properties": fields, "required": ["image"]}
    file = {"type": "string", "format": "binary", "description": fields["image"]["description"]}
    in_form = {**in_json, "properties": {**fields, "image": file}}
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": in_form},
                "application/json": {"schema": in_json},
            },
        },
        "responses": {"200": {"description": "The answer.", "content": content}, **refused},
    }


def _get(summary: str, refused: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary}, **refused}}


def _segments() -> dict[str, Any]:
    numbers = {"type": "array", "items": {"type": "number"}}
    texts = {
        "model": ({"type": "string"}, "The model that answered."),
        "height": ({"type": "integer"}, "Pixels."),
        "width": ({"type": "integer"}, "Pixels."),
        "labels": (
            {"type": "array", "items": {"type": "string"}},
            "In the order of their numbers.",
        ),
        "other": ({"type": "string"}, "The policy, as it was read."),
        "shares": (numbers, "Of each label, of the pixels."),
        "no_label_share": ({"type": "number"}, "Of no label."),
        "colours": ({"type": "array", "items": numbers}, "Red, green and blue of each label."),
        "no_label_colour": (numbers, "That of no label."),
        "runs": (
            {"type": "array", "items": {"type": "integer"}},
            "Run lengths row by row from the top left: label, length, label, length, ...; "
            "-1 is no label, and a run may go on in the next row.",
        ),
        "mask": ({"type": "string"}, "The PNG in base64, where it was asked for."),
    }
    properties = {name: {**kind, "description": text} for name, (kind, text) in texts.items()}
    required = [name for name in properties if name != "mask"]
    return {"type": "object", "properties": properties, "required": required}


def _error() -> dict[str, Any]:
    inside = {"status": {"type": "integer"}, "message": {"type": "string"}}
    return {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": inside}},
    }


def _table(rows: dict[str, Any], head: str) -> str:
    body = "".join(
        f"<tr><th scope='row'><code>{escape(name)}</code></th><td>{escape(row['description'])}</td>"
        "</tr>"
        for name, row in rows.items()
    )
    return f"<table><thead><tr><th>{head}</th><th>what it is</th></tr></thead>{body}</table>"
