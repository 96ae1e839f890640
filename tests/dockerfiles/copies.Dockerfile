FROM base
WORKDIR /w/x
COPY a .
COPY a ./
COPY a ..
COPY a b
COPY a b/
COPY a /abs/../up
COPY . /
COPY ../outside /safe/../../../x
COPY /abs/file *.txt d?r/ [a-c]x /many/
COPY --exclude=*.md --exclude=!keep.md . /docs/
COPY --parents x/y.txt ./x/./*.txt /p/
COPY --link --chown=${U:-app}:${G} a b /linked/
