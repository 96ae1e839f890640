//go:build tools

// Package tools names what is built here, for `go mod tidy`.
package tools

import _ "github.com/prometheus/prometheus/cmd/prometheus"
