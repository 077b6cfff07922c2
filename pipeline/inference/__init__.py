"""Images in, label maps out: prediction, overlays, and the served model."""
