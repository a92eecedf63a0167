package loopback

import (
	"net"
	"testing"
)

// A port that is listened on or held is not chosen once more, and none is one that
// the system may give to an outgoing connection.
func TestChosenOnce(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	chosen := func(port int) {
		if seen[port] || port < firstPort || port > lastPort {
			t.Errorf("port %d, of which %v are taken", port, seen)
		}
		seen[port] = true
	}
	for range 300 {
		l, err := Listen(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		chosen(l.Addr().(*net.TCPAddr).Port)
		p, err := Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = p.Release() }()
		chosen(p.Number)
	}
}

// A port stays its holder's while its server is away, and not after its release. It
// does not run beside other tests, which might choose the port right then.
func TestHeld(t *testing.T) {
	p, err := Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := net.Listen("tcp", p.Address())
		if err != nil {
			t.Fatal(err)
		}
		if other, err := Hold(t.Context(), p.Address()); err == nil {
			t.Errorf("%s was given away while its server ran", other.Address())
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if other, err := Hold(t.Context(), p.Address()); err == nil {
			t.Errorf("%s was given away while its server was away", other.Address())
		}
	}
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := Hold(t.Context(), p.Address())
	if err != nil {
		t.Fatalf("after its release: %v", err)
	}
	if err := again.Release(); err != nil {
		t.Fatal(err)
	}
}

func TestHoldRefuses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", "localhost:4222", "0.0.0.0:4222"} {
		if p, err := Hold(t.Context(), address); err == nil {
			t.Errorf("Hold(%q) holds %d", address, p.Number)
		}
	}
}
