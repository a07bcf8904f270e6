# The daemon, installed as from an index: from the sdist, which is built here.
#
#     docker build --tag fastecho .
#     docker run --rm --publish 12345:12345/tcp --publish 12345:12345/udp fastecho

ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN pip install --no-cache-dir build
WORKDIR /src
COPY . .
RUN python -m build --sdist
RUN python -m venv --without-pip /opt/fastecho
# `yes`: an image without the native twin is no image. Debug information would be 4/5 of the modules.
RUN FASTECHO_BUILD_EXT=yes LDFLAGS=-Wl,--strip-debug \
    pip --python /opt/fastecho/bin/python install --no-cache-dir dist/fastecho-*.tar.gz

FROM python:${PYTHON}
COPY --from=build /opt/fastecho /opt/fastecho
ENV PATH=/opt/fastecho/bin:$PATH
# Every address, IPv4 too: the default, loopback, is the container's own, and nobody else can reach it.
# A variable, so that `docker run fastecho --framing u32` still listens there.
ENV FASTECHO_LISTEN="[::]:12345"
EXPOSE 12345/tcp 12345/udp
# By number, as Kubernetes' runAsNonRoot wants it; no name, since the daemon needs no home and no file.
USER 10007:10007
STOPSIGNAL SIGTERM
ENTRYPOINT ["fastecho"]
