//go:build tools

// Package tools pins the Helm client that the cluster tests run.
package tools

import (
	_ "helm.sh/helm/v4/cmd/helm"
)
