# pgweir in an image of its own program and the C library: no shell, nobody's user, a read-only root file system.
#   docker build -t pgweir .
#   docker run -v ./pgweir.toml:/etc/pgweir/pgweir.toml:ro -v pgweir-state:/var/lib/pgweir -p 6432:6432 pgweir

ARG RUST_VERSION=1.95
FROM rust:${RUST_VERSION}-slim-trixie AS build
WORKDIR /src
# The .dockerignore lets in what the program is built from, and no more.
COPY . .
RUN cargo build --release --locked --bin pgweir
RUN sh deploy/docker/make-image.sh target/release/pgweir /image && install -d -m 0750 /state/pgweir

FROM scratch
COPY --from=build /image/ /
# Pauses and the timeline live here: the only place that is written to.
COPY --from=build --chown=10001:10001 /state/ /var/lib/
VOLUME /var/lib/pgweir
USER 10001:10001
# Not the state directory: a pgweir.toml there would win over /etc/pgweir.
WORKDIR /
EXPOSE 6432 6433
# Exit status 0 as long as pgweir answers: a restart would not make a full PostgreSQL any emptier.
HEALTHCHECK --interval=10s --timeout=8s --start-period=20s --retries=3 CMD ["pgweir", "status"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgweir"]
CMD ["run"]
