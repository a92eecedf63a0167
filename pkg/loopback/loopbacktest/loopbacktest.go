// Package loopbacktest gives tests ports that nobody else takes.
package loopbacktest

import (
	"testing"

	"attentive.internal/pkg/loopback"
)

// Reserve returns a port on which nobody listens but the test, until its end.
func Reserve(t testing.TB) *loopback.Port {
	t.Helper()
	port, err := loopback.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := port.Release(); err != nil {
			t.Error(err)
		}
	})
	return port
}
