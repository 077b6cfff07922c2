"""What Grafana, Prometheus' operator and Kueue read of our files, as JSON schemas.

Their own schemas are not to be had without a cluster or a network. These name, from their
documentation, the keys and types that our files use and nothing else, so that a misspelt key or a
number in quotes is seen here and not by an operator that leaves the field out.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": ["number", "null"]}
SWITCH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
SECONDS: Schema = {"type": "string", "pattern": r"^\d+[smhd]$"}
QUANTITY: Schema = {"type": ["integer", "string"], "pattern": r"^\d+(m|Ki|Mi|Gi|Ti)?$"}


def one_of(*values: Any) -> Schema:
    """Exactly one of some values."""
    return {"enum": list(values)}


def many(item: Schema, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "items": item, "minItems": least}


def closed(optional: Schema | None = None, /, **required: Any) -> Schema:
    """An object of these keys and no others."""
    properties = required | (optional or {})
    described = {"type": "object", "properties": properties, "additionalProperties": False}
    return described | {"required": list(required)}


def manifest(api: str, kind: str, spec: Schema | None = None) -> Schema:
    """An object of Kubernetes."""
    metadata = closed({"namespace": TEXT, "labels": TEXTS}, name=TEXT)
    more = {"spec": spec} if spec else {}
    return closed(apiVersion=one_of(api), kind=one_of(kind), metadata=metadata, **more)


_SOURCE = closed(type=one_of("prometheus"), uid=one_of("$source"))
_PLACE = closed(x=COUNT, y=COUNT, w={"type": "integer", "minimum": 1}, h=COUNT)
_THRESHOLDS = closed(mode=one_of("absolute"), steps=many(closed(color=TEXT, value=NUMBER), least=1))
_DEFAULTS = closed({"unit": TEXT, "min": NUMBER, "max": NUMBER, "thresholds": _THRESHOLDS})
_ROW = closed(
    id=COUNT,
    type=one_of("row"),
    title=TEXT,
    collapsed=one_of(False),  # A board that opens on a row that is shut shows nothing of it.
    gridPos=_PLACE,
    panels={"type": "array", "maxItems": 0},
)


def _panel(kind: str, options: Schema) -> Schema:
    return closed(
        id=COUNT,
        type=one_of(kind),
        title=TEXT,
        description=TEXT,
        datasource=_SOURCE,
        gridPos=_PLACE,
        fieldConfig=closed(defaults=_DEFAULTS, overrides=many({})),
        targets=many(closed(refId=TEXT, expr=TEXT, legendFormat=TEXT), least=1),
        options=options,
    )


_CURVES = _panel(
    "timeseries",
    closed(
        legend=closed(displayMode=one_of("list", "table"), placement=one_of("bottom", "right")),
        tooltip=closed(mode=one_of("multi", "single")),
    ),
)
_FIGURE = _panel(
    "stat",
    closed(
        reduceOptions=closed(calcs=many(one_of("lastNotNull", "max", "mean"), least=1)),
        colorMode=one_of("value", "background", "none"),
    ),
)
_WHICH_SOURCE = closed(
    name=one_of("source"),
    label=TEXT,
    type=one_of("datasource"),
    query=one_of("prometheus"),
    hide=one_of(0),
    current=closed(),
)
_WHICH_RUN = closed(
    name=one_of("run"),
    label=TEXT,
    type=one_of("query"),
    datasource=_SOURCE,
    query=closed(query=TEXT, refId=TEXT),
    refresh=one_of(2),  # At each change of the time range: runs come and go.
    multi=one_of(True),
    includeAll=one_of(True),
    allValue=one_of(".*"),
    current=closed(text=one_of("All"), value=one_of("$__all")),
)
BOARD = closed(
    uid=one_of("lseg"),
    title=TEXT,
    tags=many(TEXT),
    schemaVersion=COUNT,
    version=COUNT,
    editable=SWITCH,
    time={
        "type": "object",
        "properties": {"from": {"pattern": r"^now-\d+[mhd]$"}, "to": one_of("now")},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    refresh=SECONDS,
    timezone=one_of("browser", "utc"),
    templating=closed(list={"type": "array", "prefixItems": [_WHICH_SOURCE, _WHICH_RUN]}),
    annotations=closed(
        list=many(
            closed(
                name=TEXT,
                datasource=_SOURCE,
                enable=one_of(True),
                iconColor=TEXT,
                expr=TEXT,
                titleFormat=TEXT,
                textFormat=TEXT,
            )
        )
    ),
    panels=many({"oneOf": [_ROW, _CURVES, _FIGURE]}, least=1),
)

SOURCES = closed(
    apiVersion=one_of(1),
    datasources=many(
        closed(
            name=TEXT,
            uid=TEXT,
            type=one_of("prometheus"),
            access=one_of("proxy"),
            url={"type": "string", "pattern": "^http://"},
            isDefault=one_of(True),
        ),
        least=1,
    ),
)
PROVIDERS = closed(
    apiVersion=one_of(1),
    providers=many(
        closed({"folder": TEXT}, name=TEXT, type=one_of("file"), options=closed(path=TEXT))
    ),
)

_OF_OPERATOR = "monitoring.coreos.com/v1"
_RULE = closed(
    {
        "alert": TEXT,
        "record": TEXT,
        "for": SECONDS,
        "labels": closed(severity=one_of("critical", "warning", "info")),
        "annotations": closed(summary=TEXT),
    },
    expr=TEXT,
)
_OF_KUEUE = "kueue.x-k8s.io/v1beta2"
_QUOTA = closed(name=TEXT, nominalQuota=QUANTITY)
BY_KIND = {
    "PodMonitor": manifest(
        _OF_OPERATOR,
        "PodMonitor",
        closed(
            selector=closed(matchLabels=TEXTS),
            podTargetLabels=many(TEXT),
            podMetricsEndpoints=many(closed(port=TEXT, interval=SECONDS), least=1),
        ),
    ),
    "ServiceMonitor": manifest(
        _OF_OPERATOR,
        "ServiceMonitor",
        closed(
            namespaceSelector=closed(any=one_of(True)),
            selector=closed(matchLabels=TEXTS),
            endpoints=many(
                closed(port=TEXT, path=TEXT, interval=SECONDS, honorLabels=one_of(True)), least=1
            ),
        ),
    ),
    "PrometheusRule": manifest(
        _OF_OPERATOR,
        "PrometheusRule",
        closed(groups=many(closed({"interval": SECONDS}, name=TEXT, rules=many(_RULE, least=1)))),
    ),
    "ResourceFlavor": manifest(_OF_KUEUE, "ResourceFlavor"),
    "ClusterQueue": manifest(
        _OF_KUEUE,
        "ClusterQueue",
        closed(
            namespaceSelector=closed(matchLabels=TEXTS),
            queueingStrategy=one_of("BestEffortFIFO", "StrictFIFO"),
            resourceGroups=many(
                closed(
                    coveredResources=many(TEXT, least=1),
                    flavors=many(closed(name=TEXT, resources=many(_QUOTA, least=1)), least=1),
                )
            ),
        ),
    ),
    "LocalQueue": manifest(_OF_KUEUE, "LocalQueue", closed(clusterQueue=TEXT)),
}
"""Custom resources that kubernetes-validate does not know, by kind."""
