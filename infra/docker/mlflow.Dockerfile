# Image of the MLflow server, with drivers for PostgreSQL and S3. From the repository's root:
#   docker build --file infra/docker/mlflow.Dockerfile --tag lseg-mlflow:3.17.2 .
FROM python:3.12.12-slim-bookworm

RUN useradd --uid 1000 --create-home mlflow
WORKDIR /home/mlflow
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt \
    mlflow==3.17.2 psycopg2-binary==2.9.13 boto3==1.44.5
COPY infra/docker/create_buckets.py ./

ENV MLFLOW_DISABLE_TELEMETRY=true
USER 1000
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
