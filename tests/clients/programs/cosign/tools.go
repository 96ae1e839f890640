//go:build tools

// Package tools names what is built here, for `go mod tidy`.
package tools

import _ "github.com/sigstore/cosign/v2/cmd/cosign"
