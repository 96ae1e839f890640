# escape=`
FROM base
WORKDIR C:\app
ENV HOME=C:\users\me PATHS="C:\a;`
C:\b"
RUN dir `
    C:\
COPY a b\
LABEL note="one`"two" plain=a`$b
