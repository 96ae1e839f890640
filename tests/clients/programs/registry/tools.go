//go:build tools

// Package tools names what is built here, for `go mod tidy`.
package tools

import _ "github.com/opencontainers/distribution-spec/conformance"
