"""The limits of the served model, as a service's configuration sets them."""

from pipeline.inference.served_limits import Limits
from pipeline.serving.config import ServiceConfig


def limits_of(config: ServiceConfig) -> Limits:
    """What a call may cost."""
    return Limits(
        max_image_mib=config.max_image_mib,
        max_call_mib=config.max_image_mib,
        max_image_mpx=config.max_image_mpx,
        max_call_s=config.max_call_s,
        max_labels=config.max_labels,
    )
