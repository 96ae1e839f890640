"""The language of Dockerfiles and .dockerignore files: text in, typed instructions out. Pure."""
