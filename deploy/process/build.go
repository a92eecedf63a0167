package process

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"attentive.internal/pkg/loopback"
)

// Build compiles a program of the workspace into dir and returns its path. The
// package is written as below the workspace's root: ./deploy/allinone.
func Build(ctx context.Context, dir, pkg string) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, pkg)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return program, nil
}

// Root returns the folder of the workspace that the program is run in.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOWORK").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOWORK: %w", err)
	}
	work := strings.TrimSpace(string(out))
	if work == "" || work == "off" {
		return "", errors.New("go.work not found: run this inside the repository")
	}
	return filepath.Dir(work), nil
}

// FreeAddress returns a loopback address where nothing listens, and which no outgoing
// connection is given, nor anybody else who chooses with package loopback before ctx
// ends, which it has to.
func FreeAddress(ctx context.Context) (string, error) {
	port, err := loopback.Reserve(ctx)
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = port.Release() }) // nothing was sent: it has nothing to fail with
	return port.Address(), nil
}
