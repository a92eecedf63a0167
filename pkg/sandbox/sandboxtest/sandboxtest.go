// Package sandboxtest runs a sandbox for the length of a test.
package sandboxtest

import (
	"context"
	"sync"
	"testing"

	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// What a sandbox has when its configuration does not say: one API key with all
// scopes, one sign-up unit, and the log-in of the SFTP server.
const (
	Token      = "sandbox-token"
	SignUpUnit = "100001"
	Username   = "sandbox"
	Passphrase = "sandbox passphrase"
)

// Running is a sandbox that serves.
type Running struct {
	*sandbox.Sandbox
	// Stop ends it, before the end of the test does. It may be called twice.
	Stop func()
}

// Start runs a sandbox until the test ends. What cfg leaves out is filled in:
// Data with a directory of the test, the rest with the constants above.
func Start(t testing.TB, cfg sandbox.Config) *Running {
	t.Helper()
	if cfg.Data == "" {
		cfg.Data = t.TempDir()
	}
	if cfg.Keys == nil {
		cfg.Keys = []sandbox.APIKey{{Token: Token, Scopes: []string{
			api.ScopeAttributes, api.ScopeSubscriptions, api.ScopeReadSubscriptions,
		}}}
	}
	if cfg.SignUpUnits == nil {
		cfg.SignUpUnits = []sandbox.SignUpUnit{{ID: SignUpUnit}}
	}
	if cfg.Username == "" {
		cfg.Username = Username
	}
	if cfg.Passphrase == "" {
		cfg.Passphrase = Passphrase
	}
	s, err := sandbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	stop := sync.OnceFunc(func() {
		cancel()
		done.Wait()
	})
	t.Cleanup(stop)
	return &Running{Sandbox: s, Stop: stop}
}
