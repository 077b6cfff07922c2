"""What MLflow runs to load a served model (models from code)."""

from mlflow.models import set_model

from pipeline.inference.served_model import SegmentationModel

set_model(SegmentationModel())
