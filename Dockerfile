# pgweir in a small image that runs as nobody in particular, with a read-only root file system.
#   docker build -t pgweir .
#   docker run -v ./pgweir.toml:/etc/pgweir/pgweir.toml:ro -v pgweir-state:/var/lib/pgweir -p 6432:6432 pgweir

ARG RUST_VERSION=1.95
FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /src
# The .dockerignore lets in what the program is built from, and no more.
COPY . .
RUN cargo build --release --locked --bin pgweir

FROM debian:bookworm-slim
# A fixed number, so that volumes and secrets can be given to it.
RUN groupadd --system --gid 10001 pgweir \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/pgweir --no-create-home --shell /usr/sbin/nologin pgweir \
    && install -d -o pgweir -g pgweir -m 0750 /var/lib/pgweir \
    && install -d -m 0755 /etc/pgweir
COPY --from=build /src/target/release/pgweir /usr/local/bin/pgweir
USER 10001:10001
# Not the state directory: a pgweir.toml there would win over /etc/pgweir.
WORKDIR /
# Pauses, the generated admin password and the timeline live here: the only place that is written to.
VOLUME /var/lib/pgweir
EXPOSE 6432 6433
# Exit status 0 as long as pgweir answers: a restart would not make a full PostgreSQL any emptier.
HEALTHCHECK --interval=10s --timeout=8s --start-period=20s --retries=3 CMD ["pgweir", "status"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgweir"]
CMD ["run"]
