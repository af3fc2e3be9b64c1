# The server alone; docker-compose.yml puts it beside TimescaleDB, a cache, Prometheus and Grafana.
#   docker build -t candlery .
#   docker run -p 127.0.0.1:8000:8000 -v candlery:/var/lib/candlery candlery

FROM python:3.11.14-slim-trixie AS build
WORKDIR /src
RUN python -m venv /opt/candlery
COPY . .
RUN /opt/candlery/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[uvicorn]"

FROM python:3.11.14-slim-trixie
# The embedded PostgreSQL refuses to run as root, and nothing here needs to be.
RUN useradd --system --uid 10001 --home-dir /var/lib/candlery --create-home candlery
COPY --from=build /opt/candlery /opt/candlery
ENV PATH=/opt/candlery/bin:$PATH PYTHONUNBUFFERED=1 \
    CANDLERY_HOST=0.0.0.0 CANDLERY_PORT=8000 CANDLERY_DATA_DIR=/var/lib/candlery
USER candlery
WORKDIR /var/lib/candlery
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"CANDLERY_PORT\"]}/healthz', timeout=4)"]
CMD ["candlery", "serve"]
