package broker_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

// A server that dies while it writes the configuration of a stream leaves it
// without the checksum, or with that of the configuration before. At its next
// start it warns, and has no such stream. All that is stored must outlive that.
func TestStreamsThatTheServerSkipsAreKept(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(sum string) error{
		"killed when it was made":    os.Remove,
		"killed when it was changed": func(sum string) error { return os.WriteFile(sum, []byte("0123456789abcdef"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := queuetest.Start(t)
			if said := ensuring(t, s.URL); said != "" {
				t.Errorf("of a new broker it is said: %s", said)
			}
			c := queuetest.Connect(t, s.URL)
			last := grows(t, c, 50, nil)
			ledger, err := c.JS.KeyValue(t.Context(), broker.BucketLedger)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ledger.PutString(t.Context(), "job", "sending"); err != nil {
				t.Fatal(err)
			}
			acknowledgeOne(t, c)
			if _, err := worker(t, c).Next(); err != nil { // and does not live to acknowledge this one
				t.Fatal(err)
			}

			s.Stop()
			sums, err := filepath.Glob(filepath.Join(s.Dir, "jetstream", "$G", "streams", "*", "meta.sum"))
			if err != nil || len(sums) < 13 {
				t.Fatalf("%d streams have checksums, %v", len(sums), err)
			}
			for _, sum := range sums {
				if err := damage(sum); err != nil {
					t.Fatal(err)
				}
			}
			s.Restart()
			c = queuetest.Connect(t, s.URL)
			if _, err := c.JS.Stream(t.Context(), broker.StreamProfiles); err == nil {
				t.Fatal("the server has not skipped the stream: the test shows nothing")
			}
			if said := ensuring(t, s.URL); !strings.Contains(said, broker.StreamProfiles) {
				t.Errorf("nobody was told of it: %s", said)
			}

			if info := worker(t, c).CachedInfo(); info.NumPending != 48 || info.NumAckPending != 1 {
				t.Errorf("the worker has %d profiles and waits for %d, want 1 and 48", info.NumAckPending, info.NumPending)
			}

			// Once more, and nobody ensures anything.
			s.Restart()
			c = queuetest.Connect(t, s.URL)
			if err := c.Check(t.Context(), broker.Settings{}); err != nil {
				t.Error(err)
			}
			for stream := range ordered() {
				found, err := c.JS.Stream(t.Context(), stream)
				if err != nil {
					t.Fatal(err)
				}
				want := uint64(50)
				if stream == broker.StreamProfiles {
					want-- // one is acknowledged
				}
				if metadata := found.CachedInfo().Config.Metadata; metadata[broker.MakerKey] != "" {
					t.Errorf("%s is still being made: %v", stream, metadata)
				}
				if n := found.CachedInfo().State.Msgs; n != want {
					t.Errorf("%s holds %d messages, want %d", stream, n, want)
				}
			}
			if ledger, err = c.JS.KeyValue(t.Context(), broker.BucketLedger); err != nil {
				t.Fatal(err)
			}
			if entry, err := ledger.Get(t.Context(), "job"); err != nil || string(entry.Value()) != "sending" {
				t.Errorf("the ledger has lost its entry: %v", err)
			}
			grows(t, c, 1, last)
		})
	}
}

// ensuring returns what is said when all is ensured.
func ensuring(t *testing.T, url string) string {
	t.Helper()
	var said bytes.Buffer
	c, err := broker.Connect(t.Context(), broker.Options{URL: url}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	err = c.Ensure(t.Context(), broker.Settings{})
	if err := errors.Join(err, c.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	return said.String()
}

// worker finds or makes the consumer of profiles.
func worker(t *testing.T, c *broker.Conn) jetstream.Consumer {
	t.Helper()
	consumer, err := c.JS.CreateOrUpdateConsumer(t.Context(), broker.StreamProfiles, jetstream.ConsumerConfig{
		Durable: "worker", FilterSubject: contract.ProfileSubject("acme", contract.Subscribe, "*"), AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	return consumer
}

// acknowledgeOne works the first profile.
func acknowledgeOne(t *testing.T, c *broker.Conn) {
	t.Helper()
	m, err := worker(t, c).Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
}
