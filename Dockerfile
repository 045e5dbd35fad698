# syntax=docker/dockerfile:1
# A small image without a shell: docs/install.md says how to run it.
#
#   docker build -t weir .
#
# The build needs about 6 GB of memory and half an hour.
FROM rust:1.95.0-bookworm AS build
WORKDIR /weir
COPY . .
# The image has the pinned toolchain already, without the components that only checks need.
ENV RUSTUP_TOOLCHAIN=1.95.0
# Kernels for aarch64 have pages of up to 64 KiB; jemalloc would assume those of the build machine.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/weir/target \
    if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi; \
    cargo build --release --locked && cp target/release/weir /usr/bin/weir
# The folders of the image: the data belongs to the user that runs Weir.
RUN mkdir -p /image/var/lib/weir /image/etc/weir /image/usr/share/doc/weir && chmod 700 /image/var/lib/weir \
    && cp docs/operations/container.toml /image/etc/weir/weir.toml \
    && cp LICENSE-MIT LICENSE-APACHE NOTICE README.md /image/usr/share/doc/weir/

# Debian 12 with glibc, libgcc and the certificates of public authorities alone.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/etc /etc
COPY --from=build /image/usr /usr
COPY --from=build --chown=65532:65532 /image/var/lib/weir /var/lib/weir
COPY --from=build /usr/bin/weir /usr/bin/weir
USER 65532:65532
WORKDIR /var/lib/weir
VOLUME /var/lib/weir
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whether the server answers, without a token. A start that recovers a long log answers at once.
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["/usr/bin/weir", "status", "--alive", "--quiet", "--config", "/etc/weir/weir.toml"]
ENTRYPOINT ["/usr/bin/weir"]
CMD ["run", "--config", "/etc/weir/weir.toml", "--log-format", "json"]
