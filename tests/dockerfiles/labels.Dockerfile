FROM scratch
LABEL org.opencontainers.image.title="A title" \
      org.opencontainers.image.description="It says \"hello\" and costs \$5" \
      'single quoted'='it'"'"'s' \
      empty= \
      multi="line one \
line two"
LABEL description This is the old form, with spaces
MAINTAINER One <one@example.com>
MAINTAINER Two <two@example.com>
