FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PATH="/opt/venv/bin:$PATH"
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpq5 \
 && rm -rf /var/lib/apt/lists/*

FROM base AS wheels
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements/*.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip,id=pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf,mode=0440,gid=100 \
    --mount=type=ssh \
    pip install -r requirements/prod.txt

FROM base
COPY --from=wheels /opt/venv /opt/venv
RUN useradd --system --home-dir /srv app
WORKDIR /srv
COPY --chown=app --exclude=**/tests --exclude=*.pyc src/ ./
USER app
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s --retries=5 \
  CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"
CMD gunicorn --bind 0.0.0.0:8000 app:api
