package delivery_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
	"attentive.internal/segment-worker/internal/delivery"
)

// TestWatchKeys: how long a key lasts is shown without a job, and stays true as
// time goes by; when it has expired, that is said.
func TestWatchKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "receiver.pgp")
	synctest.Test(t, func(t *testing.T) {
		entity, err := openpgp.NewEntity("Receiver", "", "receiver@example.com", &packet.Config{
			Time: time.Now, Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: 10 * 24 * 3600,
		})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(entity.Serialize(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		m := metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: "acme", Kinds: []contract.Kind{contract.Segment}}})
		d := &delivery.Delivery{
			Destination: config.Destination{ID: "acme", Segment: &config.SegmentSettings{PGP: &config.PGP{Keys: []string{file}}}},
			Metrics:     m,
			Now:         time.Now,
		}
		var said strings.Builder
		ctx, stop := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { d.WatchKeys(ctx, slog.New(slog.NewTextHandler(&said, nil))) })
		check := func(step string, want float64) {
			t.Helper()
			synctest.Wait()
			if got := testutil.ToFloat64(m.PGPKeyDaysLeft("acme")); got < want-0.1 || got > want {
				t.Errorf("%s: %v days are left, want %v", step, got, want)
			}
		}
		check("at once", 10)
		time.Sleep(3*24*time.Hour + time.Minute)
		check("three days later", 7)
		time.Sleep(7*24*time.Hour + 2*time.Hour)
		stop()
		done.Wait()
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		if len(lines) > 3 {
			t.Errorf("%d lines, want one an hour since the key has expired:\n%s", len(lines), said.String())
		}
		for _, line := range lines {
			if !strings.Contains(line, "expired") || !strings.Contains(line, "destination=acme") {
				t.Errorf("said %q, want that the destination's key has expired", line)
			}
		}
	})
}
