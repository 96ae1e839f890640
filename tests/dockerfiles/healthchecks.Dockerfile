FROM base AS none
HEALTHCHECK NONE
FROM base AS exec
HEALTHCHECK --interval=5m --timeout=3s CMD ["/bin/check", "--fast"]
FROM exec
HEALTHCHECK --start-period=1m30s --start-interval=500ms --retries=10 \
  CMD curl -fsS http://localhost/ || exit 1
