package broker

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestAnAddressThatIsDeadDoesNotHideTheOthers, in whatever order they are tried.
func TestAnAddressThatIsDeadDoesNotHideTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		alive, other := net.Pipe()
		defer alive.Close()
		defer other.Close()
		tried := make(map[string]int)
		d := &dialer{
			lookup: func(host string, _ time.Duration) ([]string, error) {
				if host != "nats.example" {
					t.Errorf("lookup of %q", host)
				}
				return []string{"192.0.2.1", "192.0.2.2", "2001:db8::3"}, nil
			},
			dial: func(_, address string, within time.Duration) (net.Conn, error) {
				tried[address]++
				if address == "[2001:db8::3]:4222" {
					return alive, nil
				}
				time.Sleep(within) // virtual
				return nil, errors.New("i/o timeout")
			},
		}
		const times = 50
		for range times {
			began := time.Now() // virtual
			conn, err := d.Dial("tcp", "nats.example:4222")
			if err != nil || conn != alive {
				t.Fatalf("Dial = %v, %v", conn, err)
			}
			if took := time.Since(began); took > dialTimeout {
				t.Fatalf("Dial took %v", took)
			}
		}
		if n := tried["192.0.2.1:4222"]; n == 0 || n == times || tried["[2001:db8::3]:4222"] != times {
			t.Errorf("tried %v, want an order drawn each time", tried)
		}
	})
}
