# The images of the proxy and of the controller: one static program each, and nothing else.
#
# `make images` builds the programs and then this; what is copied is in the build's context.
#   docker build --target weft-proxy …
FROM scratch AS weft-proxy
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="weft-proxy" \
      org.opencontainers.image.description="The data plane of the Weft service mesh" \
      org.opencontainers.image.source="https://github.com/weft-mesh/weft" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE /LICENSE
COPY weft-proxy /usr/local/bin/weft-proxy
# A number, for runAsNonRoot; the one that `weft-proxy capture` leaves alone.
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/weft-proxy"]

FROM scratch AS weft-controller
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="weft-controller" \
      org.opencontainers.image.description="The control plane of the Weft service mesh" \
      org.opencontainers.image.source="https://github.com/weft-mesh/weft" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE /LICENSE
COPY weft-controller /usr/local/bin/weft-controller
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/weft-controller"]
