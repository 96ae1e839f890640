ARG RUST=1.79
FROM rust:${RUST}-alpine AS chef
RUN apk add --no-cache musl-dev && cargo install cargo-chef
WORKDIR /src
FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json
FROM chef AS builder
COPY --from=planner /src/recipe.json recipe.json
RUN cargo chef cook --release --recipe-path recipe.json
COPY . .
RUN cargo build --release --bin tool
FROM scratch
COPY --from=builder /src/target/release/tool /
ENTRYPOINT ["/tool"]
