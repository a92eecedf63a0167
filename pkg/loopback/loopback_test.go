package loopback

import (
	"net"
	"testing"
)

// A port that is listened on is not chosen once more, and none is one that the
// system may give to an outgoing connection.
func TestListen(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 300 {
		l, err := Listen(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		port := l.Addr().(*net.TCPAddr).Port
		if seen[port] || port < firstPort || port > lastPort {
			t.Errorf("port %d, of which %v are taken", port, seen[port])
		}
		seen[port] = true
	}
}
